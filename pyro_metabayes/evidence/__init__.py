"""The probability of all query labels of a task under a distribution over w: estimates with bounds."""
