"""Banks of classes, the sampler of tasks, and one file per source of data."""
