"""Predictions for the query set of a task, from tensors or from the user's arrays."""
