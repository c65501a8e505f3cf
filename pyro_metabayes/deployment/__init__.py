"""Use of trained learners: tasks whose support set is encoded once, and exported programs without this package."""
