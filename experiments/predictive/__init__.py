"""The command experiments.predictive: posterior and prior predictive checks."""
