"""Networks that turn inputs into features, one a file."""
