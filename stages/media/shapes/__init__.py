"""Shapes world: clips of moving coloured shapes, drawn by formulas, captioned by a template, read back from pixels."""
