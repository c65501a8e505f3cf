"""Objectives, one a file: each is a loss for pyro.infer.SVI and for the training loop alike."""
