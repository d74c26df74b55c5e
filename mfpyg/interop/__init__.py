"""Trained potentials in the programs that chemists use: one module a program, imported when it is asked for."""
