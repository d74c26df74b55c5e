"""Predictions of trained potentials for many configurations: frames, files, and the rows of a data set."""
