"""Queries of unknown classes: does the predictive distribution tell them from those of the support set?"""
