"""One file per data set or simulator."""
