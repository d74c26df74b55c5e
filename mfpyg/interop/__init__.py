"""Trained potentials in the programs that chemists use: one module a program, imported when it is asked for."""

from mfpyg import quick_pyg  # noqa: F401 - first
