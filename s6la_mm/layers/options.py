"""Checks of option values, with one form of message."""

from __future__ import annotations


def require(condition: bool, option: str, value: object, allowed: str) -> None:
    """Raises a ValueError that names option, value and what is allowed, unless ``condition``.

    Example:
        >>> require(False, 'groups', 0, 'a positive integer')
        Traceback (most recent call last):
            ...
        ValueError: groups=0 is not allowed: it must be a positive integer
    """
    if not condition:
        raise ValueError(f'{option}={value!r} is not allowed: it must be {allowed}')


def is_index(value: object, low: int, high: int) -> bool:
    """Whether ``value`` is an integer in [low, high].

    Example:
        >>> is_index(3, 0, 3), is_index(True, 0, 3), is_index(0.5, 0, 3)
        (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_positive(value: object) -> bool:
    """Whether ``value`` is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
