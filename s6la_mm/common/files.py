"""Files that are there completely or not at all, whatever kills the process; and documents with generated parts."""

from __future__ import annotations

import json
import os
import os.path as osp
from typing import Any

from .errors import UsageError


def temporary_name(path: str) -> str:
    """A hidden name beside ``path`` to write under until the file is complete; see :func:`commit`."""
    return osp.join(osp.dirname(path), f'.{osp.basename(path)}.tmp')


def commit(temporary: str, path: str) -> None:
    """Brings a complete file or folder to the disk and gives it its name.

    Args:
        temporary (str): What was written, in the folder of ``path``.
        path (str): Its name from now on; a file of that name is replaced.

    Raises:
        OSError: If the disk refuses; ``path`` is what it was then.
    """
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync(osp.join(folder, name))
    _sync(temporary)
    os.replace(temporary, path)
    _sync(osp.dirname(osp.abspath(path)))


def write_atomically(path: str, text: str) -> None:
    """Writes a text file; a reader finds the old content or the new one.

    Args:
        path (str): The file.
        text (str): Its content.

    Raises:
        OSError: If it cannot be written; the old file is there then.

    Example:
        >>> write_atomically('last_checkpoint', 'epoch_1.pth')
        >>> open('last_checkpoint').read()
        'epoch_1.pth'
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write(text)
        commit(temporary, path)
    finally:
        if osp.exists(temporary):
            os.remove(temporary)


def read_json(path: str) -> Any:
    """The content of a JSON file, None if there is no such file.

    Example:
        >>> read_json('no/such.json') is None
        True
    """
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def replace_between(text: str, begin: str, end: str, lines: list[str], name: object) -> str:
    """Puts generated lines between two marks of a document.

    Args:
        text (str): The document.
        begin (str): The mark before them.
        end (str): The mark behind them.
        lines (list[str]): What comes between.
        name (object): The document's name, for the message.

    Returns:
        str: The new document.

    Raises:
        UsageError: If it does not have both marks once.

    Example:
        >>> replace_between('a<b>old<e>c', '<b>', '<e>', ['new'], 'page.md').splitlines()
        ['a<b>', '', 'new', '', '<e>c']
    """
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UsageError(f'{name} needs the lines {begin!r} and {end!r} once each: the tables go between them')
    before, _, rest = text.partition(begin)
    return '\n'.join([f'{before}{begin}', '', *lines, '', end]) + rest.partition(end)[2]


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
