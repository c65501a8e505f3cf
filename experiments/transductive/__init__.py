"""The command experiments.transductive: transductive methods on the same tasks of several data sets of features."""
