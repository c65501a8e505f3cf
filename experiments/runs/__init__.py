"""Building runs from configurations, and reading finished runs."""
