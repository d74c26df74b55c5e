"""Interfaces to other programs, one module per program, which are imported on demand."""
