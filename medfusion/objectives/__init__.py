"""Losses and predictions, one module per kind of task."""
