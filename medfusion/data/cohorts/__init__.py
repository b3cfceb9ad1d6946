"""Cohorts: a synthetic one with a known truth, and importers of public data sets."""
