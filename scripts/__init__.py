"""Scripts of the repository; `python -m scripts.bench` runs the benchmarks."""
