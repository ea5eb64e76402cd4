"""What the ``type`` of a config stands for, in each of the forms that it may have.

A name (``'RetinaNet'``), one with its scope (``'mmdet.RetinaNet'``) or its modules (``'mmdet.models.RetinaNet'``), a
class, or what mmengine puts in place of a class while it reads a config in pure Python.
"""

from __future__ import annotations

import sys
from typing import Any

from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry


def type_name(kind: Any) -> str:
    """The bare name of a ``type``, or of the ``type`` of a config; empty if there is none.

    Args:
        kind (Any): The ``type`` in any of its forms, or the dict that has one.

    Example:
        >>> from torch.optim import SGD
        >>> type_name(SGD), type_name('mmdet.RetinaNet'), type_name(dict(type='mmengine.hooks.EMAHook')), type_name({})
        ('SGD', 'RetinaNet', 'EMAHook', '')
    """
    if isinstance(kind, dict):
        kind = kind.get('type')
    if kind is None:
        return ''
    if not isinstance(kind, (str, LazyAttr, LazyObject)):
        kind = getattr(kind, '__name__', type(kind).__name__)
    return str(kind).rpartition('.')[2]


def find_type(kind: Any, registry: Registry, scope: str | None = None) -> Any:
    """The class or function that a ``type`` stands for.

    Args:
        kind (Any): The ``type`` in any of its forms.
        registry (Registry): Where names are looked up, mmengine's.
        scope (str, optional): The default scope of the config. Defaults to None: the one that is set.

    Returns:
        Any: It, or None if there is no such thing.

    Example:
        >>> from mmengine.registry import HOOKS
        >>> find_type('CheckpointHook', HOOKS) is find_type('mmengine.hooks.CheckpointHook', HOOKS)
        True
        >>> find_type('NoSuchHook', HOOKS)
    """
    if isinstance(kind, (LazyAttr, LazyObject)):
        kind = kind.build()
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as found:
        try:
            return found.get(kind)
        except RuntimeError:  # of names that nobody has
            return None


def home_of(kind: Any) -> str | None:
    """The module from which a class or function is imported by its name: the outermost that has it.

    mmengine finds none of a module beside which there is a function of the same name, ``smooth_l1_loss`` for example.

    Args:
        kind (Any): A class or function.

    Returns:
        str or None: The name of the module; None for what is local to a function or a class.

    Example:
        >>> from torch.optim.sgd import SGD
        >>> home_of(SGD)
        'torch.optim'
    """
    parts = kind.__module__.split('.')
    modules = ('.'.join(parts[:length]) for length in range(1, len(parts) + 1))
    return next((m for m in modules if getattr(sys.modules.get(m), kind.__qualname__, None) is kind), None)
