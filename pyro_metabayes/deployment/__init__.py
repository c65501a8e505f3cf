"""Use of trained learners: tasks with a support set encoded once, and programs that run without this package."""
