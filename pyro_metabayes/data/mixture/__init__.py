"""Tasks from many sources: simulated features and banks under many networks, of any shape and marginal."""
