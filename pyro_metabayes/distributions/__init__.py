"""Distributions of the latent of a task that are not in torch or Pyro."""
