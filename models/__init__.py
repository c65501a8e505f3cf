"""Generative models, one file per model, and their priors and heads."""
