"""Calibration of a trained guide."""
