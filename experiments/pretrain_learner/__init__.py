"""The command experiments.pretrain_learner: training of the learners that ship with the package."""
