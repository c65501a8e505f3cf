"""Amortized partial pooling beside closed forms and NUTS."""
