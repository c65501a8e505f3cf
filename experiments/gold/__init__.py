"""A trained guide beside exact inference in its own model."""
