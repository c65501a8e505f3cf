"""The joint probability of all query labels of a task, with w integrated out: estimates with bounds."""
