"""Objectives, one file per objective; each is a loss for pyro.infer.SVI and for the training loop."""
