"""Posterior and prior predictive checks."""
