"""Sampling through OpenAI-compatible servers."""
