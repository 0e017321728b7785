"""How alike teacher and student are, in behaviour and in parameters (METHODS part 3)."""
