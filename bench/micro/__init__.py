"""Micro-benchmarks with pytest-benchmark: `python -m bench.micro` runs bench_*.py and tells what they say."""
