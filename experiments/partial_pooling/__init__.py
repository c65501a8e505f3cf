"""The command experiments.partial_pooling: amortized partial pooling compared with closed forms and NUTS."""
