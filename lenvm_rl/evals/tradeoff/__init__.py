"""Accuracy against length under guidance."""
