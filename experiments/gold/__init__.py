"""The command experiments.gold: a trained guide compared with exact inference in the same model."""
