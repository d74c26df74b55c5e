"""Geometries to be labelled: conformers, normal modes, molecular dynamics, and pairs of near geometries."""
