"""Predictions outside training: tasks whose support set is encoded once, and programs that run without the package."""
