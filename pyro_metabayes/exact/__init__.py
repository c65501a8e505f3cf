"""Exact inference and NUTS: references for amortized inference."""
