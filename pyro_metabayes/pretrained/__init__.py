"""Pretrained learners of the package: weights, checksums and model cards. See `MetaLearner.pretrained`."""
