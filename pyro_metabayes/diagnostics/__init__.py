"""Diagnostics of priors and posteriors: collapse, calibration, comparison with exact inference. One per file."""
