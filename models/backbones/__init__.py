"""Networks that map inputs to features, one file per network."""
