"""Open-set recognition: predictions, scores and rejection of queries whose class has no support points."""
