"""Meta-training: the training loop, optimisation, logging, data parallelism and interruption."""
