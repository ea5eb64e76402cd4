"""Helpers of the command line tools. Nothing of the model depends on them."""


class UsageError(ValueError):
    """A wrong option or combination of options; the tools print its message instead of a traceback."""
