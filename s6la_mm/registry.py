"""The scope ``s6la_mm``: configs of this package by name, ``_base_ = 's6la_mm::mask_rcnn/...'``.

mmengine builds what comes from such a base in the scope of its package. The modules of this package are registered with
mmengine's root, and its configs are for mmdet, mmseg or mmpretrain, as ``default_scope`` says: so this scope is the one
around it.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DefaultScope, Registry

SCOPE = 's6la_mm'


class SurroundingRegistry(Registry):
    """Finds what the last default scope that is not this one finds."""

    def get(self, key: str) -> Any:
        """See ``Registry.get``."""
        scopes = [instance.scope_name for instance in DefaultScope._instance_dict.values()]
        scope = next((scope for scope in reversed(scopes) if scope != SCOPE), None)
        if scope is None:
            return self.parent.get(key)
        with self.parent.switch_scope_and_registry(scope) as registry:
            return registry.get(key)


# mmengine asks for a distribution of this name, and without one where the module is, as it must for editable installs.
MODULE2PACKAGE[SCOPE] = __name__
try:
    distribution(MODULE2PACKAGE['mmseg'])
except PackageNotFoundError:  # the fork's is onedl-mmsegmentation, which onedl-mmengine's table does not know
    if find_spec('mmseg'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'
for _parent in [entry for entry in vars(mmengine_registry).values() if isinstance(entry, Registry)]:
    if _parent.parent is None and SCOPE not in _parent.children:
        SurroundingRegistry(_parent.name, parent=_parent, scope=SCOPE, locations=[__name__])
