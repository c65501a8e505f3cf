"""Parts of transductive guides: assignments of queries to classes, class marginals, Sinkhorn's projection."""
