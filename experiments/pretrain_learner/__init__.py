"""Training of the learners that ship with the package."""
