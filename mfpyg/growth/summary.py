"""Results of a round: labels and their cost, errors, and the error that the potential expects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import batched
from typing import Any

import numpy as np
from mfpyg.checkpoint import load
