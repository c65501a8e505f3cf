"""Estimates and bounds of the joint probability of all query labels of a task, with w integrated out."""
