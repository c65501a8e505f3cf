"""The command experiments.errors: confusion matrix and most confident errors of a finished run."""
