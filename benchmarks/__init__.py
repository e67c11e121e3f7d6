"""Speed and memory, side by side with the alternatives; see `python -m benchmarks`."""
