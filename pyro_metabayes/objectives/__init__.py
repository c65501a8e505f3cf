"""Objectives, one file per objective. Each objective is a loss for pyro.infer.SVI and for the training loop."""
