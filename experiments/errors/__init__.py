"""Confusion matrix and most confident errors of a finished run."""
