"""The layers of S6LA: they know tensors, not backbones."""

from .eca import ECALayer
from .map_cell import S6LAMapCell, StateRead, pool_state

__all__ = ['ECALayer', 'S6LAMapCell', 'StateRead', 'pool_state']
