"""Code that all commands share: settings, messages, sweeps, several processes."""
