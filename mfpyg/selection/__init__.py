"""Frames to label next, and at which levels, for a budget."""
