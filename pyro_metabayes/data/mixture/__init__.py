"""Tasks of any shape and class marginal, from simulated features and from features of images under many networks."""
