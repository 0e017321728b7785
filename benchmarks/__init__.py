"""Speed and memory against named rivals (`python -m benchmarks`); whether the intervals can be believed."""
