"""Distributions of the latent variable of a task that torch and Pyro do not have."""
