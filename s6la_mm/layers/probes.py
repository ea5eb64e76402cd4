"""A look at what the cells of a model write while it computes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import S6LAMapCell, S6LATokenCell

Callback = Callable[[str, nn.Module, Tensor, Tensor], None]


def watch_cells(model: nn.Module, callback: Callback) -> list[RemovableHandle]:
    """Calls a function after every write of every S6LA cell.

    Args:
        model (nn.Module): Any model; one without cells gives an empty list.
        callback (Callable): Gets the cell's name in the model, the cell, what is written (the block's output or summary
            token), and the next state.

    Returns:
        list[RemovableHandle]: To end the calls with ``remove()``.

    Example:
        >>> import torch
        >>> from s6la_mm.backbones import S6LAResNet
        >>> model = S6LAResNet(18).eval()
        >>> handles = watch_cells(model, lambda name, cell, x, h: print(name, tuple(h.shape)))
        >>> _ = model(torch.rand(1, 3, 32, 32))
        cells.layer1 (1, 32, 8, 8)
        cells.layer1 (1, 32, 8, 8)
        cells.layer2 (1, 32, 4, 4)
        cells.layer2 (1, 32, 4, 4)
        cells.layer3 (1, 32, 2, 2)
        cells.layer3 (1, 32, 2, 2)
        cells.layer4 (1, 32, 1, 1)
        >>> for handle in handles:
        ...     handle.remove()
    """

    def watch(name: str, cell: nn.Module) -> RemovableHandle:
        return cell.register_forward_hook(lambda cell, args, h: callback(name, cell, args[0].detach(), h.detach()))

    cells = [(n, m) for n, m in model.named_modules() if isinstance(m, (S6LAMapCell, S6LATokenCell))]
    return [watch(name, cell) for name, cell in cells]
