"""From a configuration to the objects of a run, and finished runs read again."""
