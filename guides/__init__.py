"""Guides, one file per guide, named as on the command line."""
