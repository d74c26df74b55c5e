"""Batched predictions of trained potentials: for frames, files and data sets."""
