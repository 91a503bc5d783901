"""Parts of real_text.py: rollout files from real text, training, comparison, figure."""
