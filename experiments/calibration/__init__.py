"""The command experiments.calibration: tests of the calibration of a guide."""
