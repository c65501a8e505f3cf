"""The command experiments.calibration: calibration of a trained guide."""
