"""Exact inference and NUTS, as references for amortized inference."""
