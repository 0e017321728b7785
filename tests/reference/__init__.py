"""Literal float64 versions of the formulas, slow on purpose."""
