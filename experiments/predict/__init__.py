"""The command experiments.predict: predictions of a run for new points."""
