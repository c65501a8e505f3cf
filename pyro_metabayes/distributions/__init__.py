"""Distributions of the latent variable of a task, in addition to those of torch and Pyro."""
