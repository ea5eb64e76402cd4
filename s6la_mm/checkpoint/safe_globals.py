"""What mmengine checkpoints hold beyond tensors, allow-listed for ``torch.load(weights_only=True)``.

torch ≥ 2.6 refuses anything but tensors and plain containers. mmengine's message hub stores its log curves as
``HistoryBuffer`` (with numpy arrays and references to its four statistics methods) and numpy scalars; without them
neither ``--resume`` nor ``tools/test.py`` could read a checkpoint. The check itself stays on.
"""

from __future__ import annotations

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_NUMPY_TYPES = ('bool', 'int8', 'uint8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64')


def _history_buffer_method(owner: type, name: str) -> object:
    """Stands in for ``builtins.getattr``, by which pickle refers to ``HistoryBuffer.min`` and its like.

    The real getattr would hand a malicious file a way to any attribute of any allowed object.
    """
    if owner is not HistoryBuffer or name.startswith('_'):
        raise ValueError(f'refused to read attribute {name!r} of {owner!r} while loading a checkpoint')
    return getattr(HistoryBuffer, name)


def allow_mmengine_checkpoints() -> None:
    """Adds the types of mmengine checkpoints to torch's list of safe globals.

    Example:
        >>> import torch
        >>> from mmengine.logging import HistoryBuffer
        >>> torch.save(HistoryBuffer([1.0], [1]), 'history.pth')
        >>> allow_mmengine_checkpoints()  # importing s6la_mm does this
        >>> float(torch.load('history.pth', weights_only=True).current())
        1.0
    """
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_buffer_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *{type(np.dtype(name)) for name in _NUMPY_TYPES},
            # numpy 2 renamed numpy.core; files know the name of the numpy that wrote them.
            *(
                (function, f'numpy.{core}.multiarray.{name}')
                for core in ('_core', 'core')
                for name, function in (('scalar', multiarray.scalar), ('_reconstruct', multiarray._reconstruct))
            ),
        ]
    )
