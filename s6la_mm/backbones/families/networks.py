"""What the families share to run the network that a checkpoint is from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_BUFFERS = ('num_batches_tracked', 'relative_position_index', 'attn_mask', 'read.weight')


def load(network: nn.Module, source: dict[str, Tensor], may_lack: tuple[str, ...] = ('fc.', 'head')) -> None:
    """Loads all that a network needs for its features.

    Raises:
        ValueError: If something is missing, other than keys that start with ``may_lack`` and computed buffers.
    """
    own = network.state_dict()
    fits = {k: v for k, v in source.items() if k in own and own[k].shape == v.shape}
    missing = [k for k in own if k not in fits and not k.startswith(may_lack) and not k.endswith(_BUFFERS)]
    if missing:
        raise ValueError(f"--verify's {type(network).__name__} is not the source's network: {missing[:4]} are missing")
    network.load_state_dict(fits, strict=False)


def openmmlab(backbone: nn.Module, source: dict[str, Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The class that a backbone extends: its forward pass on the blocks, which are plain ones with a read beside."""
    base: Any = next(c for c in type(backbone).__mro__ if c.__module__.startswith(('mmpretrain.', 'mmdet.')))
    network = copy.deepcopy(backbone).float()
    load(network, source, may_lack=('initial_state', 'cells.', 'carries.', 'norm', 'ln2.'))
    network.eval()
    return lambda images: base.forward(network, images)[-1]
