"""Diagnostics of priors and posteriors: collapse, calibration, comparison with exact inference."""
