"""Speed and memory against named rivals, both sides in one run, as ratios: `python -m benchmarks`."""
