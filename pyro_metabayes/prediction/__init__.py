"""Prediction for the query set of one task, from arrays."""
