"""Pretrained learners that are part of the package (weights, checksums, model cards); see `MetaLearner.pretrained`."""
