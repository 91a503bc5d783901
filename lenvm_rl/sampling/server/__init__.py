"""OpenAI-compatible servers as a sampling engine."""
