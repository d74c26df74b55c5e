"""Backbones, heads, and the potential that joins them."""

from mfpyg.models.hipnn import HIPNN
from mfpyg.models.potential import MultiFidelityPotential, Prediction

__all__ = ["HIPNN", "MultiFidelityPotential", "Prediction"]
