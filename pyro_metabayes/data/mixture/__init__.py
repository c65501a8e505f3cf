"""Tasks of any shape and class marginal, from simulated features and from features that many networks compute."""
