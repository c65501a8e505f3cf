"""Exact inference and NUTS, for comparison with amortized inference."""
