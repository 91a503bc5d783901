"""Candidate heads: all values from one hidden state, and how they are distilled."""
