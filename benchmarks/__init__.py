"""Speed and memory against named rivals (`python -m benchmarks`); whether intervals and estimates can be believed."""
