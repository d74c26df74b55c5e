"""Public name of :mod:`mfpyg.inference.frames`."""

from mfpyg.inference.ensemble import Ensemble
from mfpyg.inference.frames import FramePrediction, Values, predict_frames

__all__ = ["Ensemble", "FramePrediction", "Values", "predict_frames"]
