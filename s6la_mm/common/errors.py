"""The error whose message is for users."""


class UsageError(ValueError):
    """A wrong option, file or combination of them; the tools print its message instead of a traceback."""
