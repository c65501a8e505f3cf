"""Studies, i.e. lists of runs with different settings: job lists, parallel execution and tables."""
