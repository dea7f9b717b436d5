"""Helios: chunks of a film, each from the latents before it, which a transformer of Wan's size reads compressed."""
