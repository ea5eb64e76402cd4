"""The layers of S6LA: they know tensors, not backbones."""

from .eca import ECALayer
from .map_cell import S6LAMapCell, StateRead, pool_state
from .token_cell import S6LATokenCell, StateCarry, TokenRead, summary_token

# The layers that hold parameters of the state, which plain checkpoints do not have. Each says in ``state_axes`` which
# axes of its parameters have state_dim entries.
STATE_LAYERS = (S6LAMapCell, StateRead, S6LATokenCell, TokenRead, StateCarry)

__all__ = [
    'STATE_LAYERS',
    'ECALayer',
    'S6LAMapCell',
    'S6LATokenCell',
    'StateCarry',
    'StateRead',
    'TokenRead',
    'pool_state',
    'summary_token',
]
