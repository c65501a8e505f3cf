"""Data sets (banks), samplers of tasks and streams of tasks; `sources/` has one file per data set or simulator."""
