"""Exact inference and NUTS, with which amortized inference is compared."""
