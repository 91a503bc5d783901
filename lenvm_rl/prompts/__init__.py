"""Prompt files and prompt sets: what is sampled, and what graders need."""
