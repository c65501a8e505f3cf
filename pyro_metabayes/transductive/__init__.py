"""Inference on the query set as a whole: assignments of queries to classes, class marginals."""
