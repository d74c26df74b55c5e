"""Backbones, heads, and the potential that joins them."""

from mfpyg.backbones import register
from mfpyg.models.backbone import Backbone
from mfpyg.models.delta import DeltaPotential
from mfpyg.models.hipnn import HIPNN
from mfpyg.models.interface import Potential
from mfpyg.models.potential import MultiFidelityPotential
from mfpyg.models.prediction import Prediction

__all__ = ["HIPNN", "Backbone", "DeltaPotential", "MultiFidelityPotential", "Potential", "Prediction", "register"]
