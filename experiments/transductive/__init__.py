"""The comparison of transductive methods on the same tasks of several banks."""
