"""Plain values that rebuild the parts of a learner."""
