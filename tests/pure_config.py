"""Configs in pure Python: any config of text, written anew with imported classes as its types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.config import Config

from s6la_mm.config_types import find_type, home_of

SKIPPED = ('FUNCTIONS', 'INFERENCERS', 'STRATEGIES')  # no package has its own
REGISTRIES = [r for name, r in vars(registry).items() if isinstance(r, registry.Registry) and name not in SKIPPED]


def write_pure(cfg: Config, path: Path) -> Path:
    """Writes a config without ``default_scope`` and ``custom_imports``, whose types are the classes that they name.

    What is in no registry, such as ``nms=dict(type='nms')``, stays text.
    """
    entries = cfg.to_dict()
    scope = entries.pop('default_scope')
    entries.pop('custom_imports', None)
    imports: dict[str, str] = {}

    def spell(node: Any) -> str:
        if isinstance(node, dict):
            return 'dict(**{' + ', '.join(f'{key!r}: {spell_entry(key, value)}' for key, value in node.items()) + '})'
        if isinstance(node, (list, tuple)):
            inside = ', '.join(map(spell, node)) + ',' * (len(node) == 1)
            return f'[{inside}]' if isinstance(node, list) else f'({inside})'
        return repr(node)

    def spell_entry(key: str, value: Any) -> str:
        if key != 'type' or not isinstance(value, str):
            return spell(value)
        found = (find_type(value, each, scope) for each in REGISTRIES)
        kind = next((kind for kind in found if kind is not None), None)
        if not hasattr(kind, '__qualname__'):
            return repr(value)
        name = f'{home_of(kind)}_{kind.__name__}'.replace('.', '_')
        imports[name] = f'from {home_of(kind)} import {kind.__name__} as {name}'
        return name

    lines = [f'{key} = {spell_entry(key, value)}' for key, value in entries.items()]
    path.write_text('\n'.join([*imports.values(), 'default_scope = None', *lines]) + '\n', encoding='utf-8')
    return path
