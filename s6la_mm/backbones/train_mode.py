"""``train()`` as PyTorch promises it; OpenMMLab's backbones return None."""

from __future__ import annotations

from torch import nn


class TrainReturnsSelf(nn.Module):
    """Makes ``train`` and ``eval`` of a backbone return it; put it before the base class."""

    def train(self, mode: bool = True) -> TrainReturnsSelf:
        """Like the base class, but returns self as ``nn.Module.train`` promises."""
        super().train(mode)
        return self
