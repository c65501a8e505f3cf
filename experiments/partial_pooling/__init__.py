"""Amortized partial pooling compared with closed forms and NUTS."""
