"""Grids of small training runs: scaling and ablation."""
