"""Pretraining of a LenVM with verl's critic workers."""
