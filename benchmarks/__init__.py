"""Speed and memory against named rivals, as ratios: `python -m benchmarks`; and whether the intervals can be believed."""
