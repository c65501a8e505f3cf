"""Prior collapse by training objective."""
