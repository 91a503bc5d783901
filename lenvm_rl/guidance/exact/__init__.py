"""Exact values of candidates: each one is run through the LenVM."""
