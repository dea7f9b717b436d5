"""Tiny models with random weights, in the public layouts: made in seconds, and what they make is noise."""
