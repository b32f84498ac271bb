"""The harness behind `benchmarks/performance.py`: it loads no torch, so that a child's peak memory is its own."""
