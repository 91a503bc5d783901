"""Parts of scripts/bench_guidance.py."""
