"""``torch.load`` without code for torch below 2.6, whose own ``weights_only=True`` knows no class of mmengine's.

``Unpickler`` follows the same rules as that of torch 2.6: names from the allow-list alone, calls of what was named
alone, states for objects of allowed types alone. Ends with the support of torch 2.5.
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_PythonUnpickler: Any = pickle._Unpickler  # its methods have no public names


def _refuse(unpickler: Any) -> None:
    raise pickle.UnpicklingError('Unsupported operand in a file of weights')


def _changes(load: Callable, kinds: tuple[type, ...], behind_mark: bool, arguments: int = 0) -> Callable:
    """``load``, which changes an object on the stack, for objects of these types only."""

    def checked(unpickler: Any) -> None:
        target = unpickler.metastack[-1][-1] if behind_mark else unpickler.stack[-1 - arguments]
        if type(target) not in kinds:
            raise pickle.UnpicklingError(f'Unsupported change of a {type(target)} in a file of weights')
        load(unpickler)

    return checked


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, by which pickle's protocol 2 writes bytes."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'Unsupported encoding {encoding} in a file of weights')
    return text.encode(encoding)


class Unpickler(_PythonUnpickler):
    """Python's unpickler, limited to ``allowed`` (a dict of names and objects) and torch's own list."""

    allowed: dict[str, Any] = {}  # set by ``loader``
    dispatch = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """The object of that name, if it is allowed."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        known = torch._weights_only_unpickler._get_allowed_globals() | self.allowed
        if f'{module}.{name}' not in known:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name} is not on the list')
        return known[f'{module}.{name}']

    def _is_allowed(self, function: Any) -> bool:
        known = [*torch._weights_only_unpickler._get_allowed_globals().values(), *self.allowed.values()]
        return any(function is other for other in known)

    def load_reduce(self) -> None:
        """Calls what the file names, not what it got out of that."""
        if not self._is_allowed(self.stack[-2]):
            raise pickle.UnpicklingError(f'Unsupported call of {self.stack[-2]} in a file of weights')
        super().load_reduce()

    def load_newobj(self) -> None:
        """Makes an object of an allowed type."""
        if not self._is_allowed(self.stack[-2]):
            raise pickle.UnpicklingError(f'Unsupported type {self.stack[-2]} in a file of weights')
        super().load_newobj()

    def load_build(self) -> None:
        """Sets the state of an object of an allowed type: attributes by a dict, or what the type makes of it."""
        inst, state = self.stack[-2:]
        has_method = hasattr(inst, '__setstate__')
        if isinstance(inst, type) or not self._is_allowed(type(inst)) or not (has_method or type(state) is dict):
            raise pickle.UnpicklingError(f'Unsupported state of a {type(inst)} in a file of weights')
        super().load_build()

    for _opcode, _method in {
        pickle.REDUCE: load_reduce,
        pickle.NEWOBJ: load_newobj,
        pickle.BUILD: load_build,
        pickle.APPEND: _changes(_PythonUnpickler.load_append, (list,), False, 1),
        pickle.APPENDS: _changes(_PythonUnpickler.load_appends, (list,), True),
        pickle.ADDITEMS: _changes(_PythonUnpickler.load_additems, (set,), True),
        pickle.INST: _refuse,
        pickle.OBJ: _refuse,
        pickle.NEWOBJ_EX: _refuse,
        pickle.EXT1: _refuse,
        pickle.EXT2: _refuse,
        pickle.EXT4: _refuse,
    }.items():
        dispatch[_opcode[0]] = _method
    del _opcode, _method


def loader(torch_load: Callable, allowed: dict[str, Any]) -> Callable:
    """``torch.load`` that reads with :class:`Unpickler`, whatever its caller says of ``weights_only``.

    Args:
        torch_load (Callable): torch's function.
        allowed (dict[str, object]): What a file may name beside torch's own list.

    Returns:
        Callable: One with the same arguments.
    """
    limited = type('Unpickler', (Unpickler,), dict(allowed={'_codecs.encode': _encode, **allowed}))
    module: Any = ModuleType('weights_only')
    module.Unpickler = limited
    module.load = lambda file, **options: limited(file, **options).load()

    def load(
        f: Any, map_location: Any = None, pickle_module: Any = None, *, weights_only: bool | None = None, **options: Any
    ) -> Any:
        _refuse_torchscript(f)
        return torch_load(f, map_location, pickle_module=module, weights_only=False, **options)

    return load


def _refuse_torchscript(file: Any) -> None:
    """torch would run a program that it finds instead of weights."""
    is_path = not hasattr(file, 'read')
    position = None if is_path else file.tell()
    try:
        reader = torch._C.PyTorchFileReader(str(file) if is_path else file)
    except (RuntimeError, ValueError):  # no zip archive of torch's; of few bytes in memory a ValueError
        return
    finally:
        if not is_path:
            file.seek(position)
    if 'constants.pkl' in reader.get_all_records():
        raise RuntimeError('Cannot load TorchScript archives as weights')
