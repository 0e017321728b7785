"""The built-in world and pair: made-up facts whose ground truth is known, and models trained on them."""
