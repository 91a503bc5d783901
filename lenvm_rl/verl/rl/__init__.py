"""A policy in training beside its length critic."""
