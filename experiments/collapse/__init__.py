"""The command experiments.collapse: prior collapse and scores by training objective."""
