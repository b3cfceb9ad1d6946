"""Layers shared by models; all of them safe for per-sample gradients."""
