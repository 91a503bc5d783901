"""Sampling runs: prompts to rollout files, whatever engine completes them."""
