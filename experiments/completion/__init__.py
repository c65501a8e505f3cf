"""The command experiments.completion: completion of command lines with the Tab key."""
