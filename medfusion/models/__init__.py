"""Registered models and their building blocks."""
