"""A trained guide compared with exact inference in the same model."""
