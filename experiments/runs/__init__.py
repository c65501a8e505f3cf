"""Builds runs from configurations, and reads finished runs."""
