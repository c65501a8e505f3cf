"""Guides, one file per guide. The file NAME.py defines guide=NAME of the command line."""
