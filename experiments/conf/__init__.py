"""The settings of the commands: one folder per group, one YAML file per choice."""
