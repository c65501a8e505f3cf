"""Banks of classes, samplers and streams of tasks; `sources/` has one file per data set or simulator."""
