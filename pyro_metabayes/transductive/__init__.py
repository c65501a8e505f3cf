"""Parts of transductive guides: soft assignments of queries to classes, class marginals and Sinkhorn's projection."""
