"""Parts of scripts/bench/guidance.py."""
