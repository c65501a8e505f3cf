"""The one exception for a mistake that the caller can mend."""


class UsageError(ValueError):
    """Expected what, got what, what there is or what to do: one line, shown without a traceback."""


class Interrupted(KeyboardInterrupt):
    """Work was stopped by a signal at a point from which it can go on; the message says how."""
