"""What is generated or trained once in a session, for all tests and by whichever worker needs it first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the session that ``make(folder)`` fills once. Tests read it: what they change they copy first."""
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent  # the workers' own folders are in it
    folder = base / name
    done = base / f'{name}.done'
    with FileLock(base / f'{name}.lock'):
        if not done.exists():
            folder.mkdir(parents=True)
            make(folder)
            done.touch()
    return folder
