"""The hospital side."""
