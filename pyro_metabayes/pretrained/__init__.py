"""Learners that ship with the package: weights, checksums and cards; `MetaLearner.pretrained` loads them."""
