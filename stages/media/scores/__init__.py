"""Scores of a film: figures of its frames, of its motion, of its seams and against a reference, in one pass over it."""
