"""Metrics, score histograms, intervals and the run report."""
