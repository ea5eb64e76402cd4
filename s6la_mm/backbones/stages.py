"""Stages that are called as modules although a state passes through them: hooks see their feature maps.

Grad-CAM, distillation and recorders of features hook stages and blocks by their names, and expect of them what the
plain network returns. So the state is no output: it goes in a box that lives as long as a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

from mmengine.model import Sequential
from torch import Tensor, nn


class Carried:
    """The state on its way through a forward pass.

    Args:
        h (Tensor, optional): The state; each layer puts the next one in its place. Defaults to None: none yet.
    """

    def __init__(self, h: Tensor | None = None) -> None:
        self.h = h


class StateStage(Sequential):
    """A stage of a convolutional backbone, whose blocks need more than the feature map."""

    def forward(self, x: Tensor, layer: Callable[[int, nn.Module, Tensor], Tensor] | None = None) -> Tensor:
        """Computes the feature map.

        Args:
            x (Tensor): What the stage before made.
            layer (Callable, optional): Computes a block's output from its index, the block and its input. Defaults to
                None: the block alone does, if it takes a feature map alone.

        Returns:
            Tensor: The output of the last block.
        """
        if layer is None:
            return super().forward(x)
        for index, block in enumerate(self):
            x = layer(index, block, x)
        return x
