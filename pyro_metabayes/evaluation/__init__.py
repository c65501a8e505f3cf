"""Scores of trained learners, with intervals."""
