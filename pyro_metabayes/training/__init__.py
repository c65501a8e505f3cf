"""Meta-training: the loop, its optimiser, its log, and how it ends."""
