"""Exact inference, or as good as exact: what amortized inference is measured against."""
