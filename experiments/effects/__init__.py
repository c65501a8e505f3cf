"""The command experiments.effects: the learned prior and the effects of each group of a run."""
