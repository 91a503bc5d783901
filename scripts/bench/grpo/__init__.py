"""Parts of rl.py: the methods, one training run, the comparison, the figures."""
