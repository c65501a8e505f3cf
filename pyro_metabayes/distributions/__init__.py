"""Distributions of the latent of a task that torch and Pyro do not have."""
