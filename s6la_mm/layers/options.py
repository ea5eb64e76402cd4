"""Checks of option values, with one form of message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


@contextmanager
def named_options(cls: type, options: dict[str, Any]) -> Iterator[None]:
    """Turns the errors by which a base class refuses options, many of them without words, into a ValueError with names.

    Args:
        cls (type): What is built.
        options (dict[str, Any]): What the base class is given.

    Raises:
        ValueError: For every error but that of a keyword that nothing takes, which names it already.

    Example:
        >>> with named_options(dict, {'depth': 7}):
        ...     assert False
        Traceback (most recent call last):
            ...
        ValueError: dict cannot be built with depth=7: AssertionError in the base class
    """
    try:
        yield
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if 'unexpected keyword argument' in str(error):
            raise
        given = ', '.join(f'{key}={value!r}' for key, value in options.items())
        reason = ' '.join(map(str, error.args)) or f'{type(error).__name__} in the base class'
        raise ValueError(f'{cls.__name__} cannot be built with {given}: {reason}') from error
