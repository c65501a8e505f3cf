"""A package, so that no installed one of this name can stand in its way."""
