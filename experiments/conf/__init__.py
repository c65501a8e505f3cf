"""The settings of the commands: one folder a group, one YAML a choice."""
