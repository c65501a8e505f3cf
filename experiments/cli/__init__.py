"""What every command shares: settings, messages, sweeps, locks, processes."""
