"""Specifications: plain values (numbers, text, lists) from which the parts of a learner are rebuilt."""
