"""Sampler on transformers: continuous batching in this process."""
