"""Tiny models with random weights in the public layouts. They are built in seconds, and their output is noise."""
