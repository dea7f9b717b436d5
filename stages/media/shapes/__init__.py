"""Shapes world: clips of coloured shapes that move, drawn by formula, told by a template, read back from pixels."""
