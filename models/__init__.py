"""Generative models, their priors and heads: one a file."""
