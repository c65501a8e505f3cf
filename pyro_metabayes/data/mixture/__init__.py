"""Tasks of any shape and class marginal, from simulated features and from features of many networks."""
