"""Builds the objects of a run (data, learner, tasks) from a configuration, and reads finished runs."""
