"""Specifications: plain values from which the parts of a learner are rebuilt."""
