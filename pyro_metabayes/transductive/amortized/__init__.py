"""Steps on the queries of a task whose rules are networks of statistics of the task."""
