"""Predictions of a run for rows of new groups."""
