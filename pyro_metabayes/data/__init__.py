"""Banks of classes, the sampler of tasks, and one file a source of data."""
