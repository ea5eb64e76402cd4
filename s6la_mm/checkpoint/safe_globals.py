"""What mmengine checkpoints hold beyond tensors, and loading that runs no code in a file.

``torch.load(weights_only=True)`` refuses anything but tensors and plain containers. mmengine's message hub stores its
log curves as ``HistoryBuffer`` (with numpy arrays and references to its four statistics methods) and numpy scalars;
without them neither ``--resume`` nor ``tools/test.py`` could read a checkpoint. The check itself stays on.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from ..compat import SAFE_GLOBALS_HAVE_NAMES, numpy_multiarray
from . import unpickling

_NUMPY_TYPES = ('bool', 'int8', 'uint8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64')


def _history_buffer_method(owner: type, name: str) -> object:
    """Stands in for ``builtins.getattr``, by which pickle refers to ``HistoryBuffer.min`` and its like.

    The real getattr would hand a malicious file a way to any attribute of any allowed object.
    """
    if owner is not HistoryBuffer or name.startswith('_'):
        raise ValueError(f'refused to read attribute {name!r} of {owner!r} while loading a checkpoint')
    return getattr(HistoryBuffer, name)


def _allowed() -> dict[str, object]:
    """Names as they are in a file, and what is taken for them."""
    types = [HistoryBuffer, np.ndarray, np.dtype, *(type(np.dtype(name)) for name in _NUMPY_TYPES)]
    functions = dict(scalar=numpy_multiarray.scalar, _reconstruct=numpy_multiarray._reconstruct)
    return {
        'builtins.getattr': _history_buffer_method,
        **{f'{kind.__module__}.{kind.__qualname__}': kind for kind in types},
        # numpy 2 renamed numpy.core; files know the name of the numpy that wrote them.
        **{f'numpy.{core}.multiarray.{name}': f for core in ('_core', 'core') for name, f in functions.items()},
    }


def allow_mmengine_checkpoints() -> None:
    """Adds the types of mmengine checkpoints to torch's list of safe globals.

    Below 2.6 torch's list cannot hold them: there only :func:`weights_only` reads such files.

    Example:
        >>> import torch
        >>> from mmengine.logging import HistoryBuffer
        >>> torch.save(HistoryBuffer([1.0], [1]), 'history.pth')
        >>> allow_mmengine_checkpoints()  # importing s6la_mm does this
        >>> with weights_only():
        ...     float(torch.load('history.pth').current())
        1.0
    """
    if not SAFE_GLOBALS_HAVE_NAMES:
        return
    torch.serialization.add_safe_globals([(entry, name) for name, entry in _allowed().items()])


def _without_getattr(torch_load: Callable) -> Callable:
    """``torch.load`` that takes the real ``getattr`` off torch's list, where onedl-mmengine puts it for every load."""

    @functools.wraps(torch_load)
    def load(*args: object, **options: object) -> object:
        listed = torch.serialization.get_safe_globals()
        if getattr in listed:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([entry for entry in listed if entry is not getattr])
        return torch_load(*args, **options)

    return load


@contextmanager
def weights_only() -> Iterator[None]:
    """Whatever loads a checkpoint in this context, no code in it is run.

    mmengine loads URLs through torch.hub, whose default is ``weights_only=False``; here it is True. torch refuses to be
    forced both ways, so that the opposite variable has to go for the time.

    Example:
        >>> import os
        >>> import pytest
        >>> torch.save(os.system, 'code.pth')
        >>> with weights_only(), pytest.raises(Exception, match='system'):
        ...     torch.load('code.pth', weights_only=False)
    """
    force, forbid = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    before = {name: os.environ.pop(name, None) for name in (force, forbid)}
    torch_load = torch.load
    if SAFE_GLOBALS_HAVE_NAMES:
        os.environ[force] = '1'
        torch.load = _without_getattr(torch_load)
    else:
        torch.load = unpickling.loader(torch_load, _allowed())
    try:
        yield
    finally:
        torch.load = torch_load
        os.environ.pop(force, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
