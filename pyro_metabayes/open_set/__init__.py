"""Open-set recognition: predictions, scores and rejection for tasks with queries of unknown classes."""
