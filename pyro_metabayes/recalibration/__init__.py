"""Baselines of calibration: temperature scaling, and ensembles of learners."""
