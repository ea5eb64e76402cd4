"""Files that are there completely or not at all, whatever kills the process; and documents with generated parts."""

from __future__ import annotations

import glob
import json
import os
import os.path as osp
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import UsageError


def temporary_name(path: str) -> str:
    """A hidden name beside ``path``, under which it is written; see :func:`complete_or_not`."""
    return osp.join(osp.dirname(path), f'.{osp.basename(path)}.tmp')


@contextmanager
def complete_or_not(path: str, is_owner: bool = True) -> Iterator[str]:
    """Lets a file or folder have its name when it is complete and on the disk; until then ``path`` is what it was.

    Args:
        path (str): The name. Its folder exists.
        is_owner (bool): Whether this process gives the name, where several write. Defaults to True.

    Yields:
        str: The name to write under. It is removed if that fails with an OSError; a kill leaves it.

    Example:
        >>> with complete_or_not('numbers.txt') as temporary:
        ...     with open(temporary, 'w') as file:
        ...         _ = file.write('1 2 3')
        >>> open('numbers.txt').read()
        '1 2 3'
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        if is_owner:
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _sync(osp.join(folder, name))
            _sync(temporary)
            if osp.isdir(path):  # which cannot be replaced in one step
                remove(_aside(path))
                os.replace(path, _aside(path))
            os.replace(temporary, path)
            _sync(osp.dirname(osp.abspath(path)))
            remove(_aside(path))
    except OSError:
        if is_owner:
            put_back(osp.dirname(path))
            remove(temporary)
        raise


def put_back(folder: str) -> None:
    """Gives back their names to folders which a kill kept :func:`complete_or_not` from replacing."""
    for aside in glob.glob(osp.join(glob.escape(folder), _aside('*'))):
        path = osp.join(folder, osp.basename(aside)[1:].removesuffix('.old'))
        if not osp.exists(path):
            os.replace(aside, path)


def _aside(path: str) -> str:
    """Where a folder is while another one takes its name."""
    return osp.join(osp.dirname(path), f'.{osp.basename(path)}.old')


def write_atomically(path: str, text: str) -> None:
    """Writes a text file; a reader finds the old content or the new one."""
    with complete_or_not(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write(text)


def remove(path: str) -> None:
    """Removes a file or a folder, if there is one."""
    if osp.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    elif osp.exists(path):
        os.remove(path)


def read_json(path: str) -> Any:
    """The content of a JSON file, None if there is no such file.

    Raises:
        UsageError: If it is no JSON.

    Example:
        >>> read_json('no/such.json') is None
        True
    """
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(f'{path} is damaged, it is no JSON ({error}): remove it or get it anew') from error


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
