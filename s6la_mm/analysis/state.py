"""What the state of a trained network does: what is kept, written and read, and how far back it reaches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.errors import UsageError
from ..layers import StateRead, TokenRead
from ..layers.probes import watch_cells

SAMPLES = 20000  # of Δ and decay, for each write and image: enough for percentiles, and little memory
PIXELS = 4096  # of the linear regression, for each write and image


@dataclass
class Write:
    """What is known about one write of the state, over all images.

    Attributes:
        cell (str): Name of the cell.
        delta (list[Tensor]): Samples of the step sizes Δ.
        decay (list[Tensor]): Samples of the decays exp(Δ A).
        channel_decay (list[Tensor]): Means of the decays over an image, (N,) or (D, N).
        rms (list[float]): Root mean square of the state after it.
        map (Tensor or None): The state after it for the last image, (N, H, W); None for tokens.
        regression (Regression or None): Of the state on the block's output; None for tokens, whose state has no pixels.
    """

    cell: str
    delta: list[Tensor] = field(default_factory=list)
    decay: list[Tensor] = field(default_factory=list)
    channel_decay: list[Tensor] = field(default_factory=list)
    rms: list[float] = field(default_factory=list)
    map: Tensor | None = None
    regression: Regression | None = None


class Regression:
    """Least squares with an intercept, over samples that come in parts.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x, noise = torch.rand(1000, 3), torch.randn(1000, 1)
        >>> regression = Regression()
        >>> regression.add(x, x.sum(1, keepdim=True) + 0.5 * noise)  # variances 3 / 12 and 0.5²
        >>> print(f'{regression.unexplained():.1f}')
        0.5
    """

    def __init__(self) -> None:
        self.inputs = self.samples = 0
        self.moments: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds samples of the inputs (samples, D) and the targets (samples, N)."""
        self.inputs = x.shape[1]
        rows = torch.cat((x, y), dim=1).double()
        rows = torch.cat((rows.new_ones(len(rows), 1), rows), dim=1)
        moments = rows.t() @ rows
        self.moments = moments if self.moments is None else self.moments + moments
        self.samples += len(rows)

    def unexplained(self) -> float:
        """Share of the targets' variance that no linear map of the inputs gives; NaN from too few samples.

        Corrected for the degrees of freedom (adjusted R²): targets that are noise give 1 in the mean.
        """
        end = 1 + self.inputs
        freedom = self.samples - end
        if self.moments is None or freedom < self.inputs:
            return float('nan')
        total = self.moments[end:, end:].diagonal() - self.moments[0, end:].square() / self.samples
        cross = self.moments[:end, end:]
        # The pseudoinverse, as channels that a ReLU has closed are constant.
        explained = (cross * (torch.linalg.pinv(self.moments[:end, :end], hermitian=True) @ cross)).sum(0)
        left = (self.moments[end:, end:].diagonal() - explained).sum() / freedom
        return float(left / (total.sum() / (self.samples - 1)).clamp(min=1e-300))


class StateAnalysis:
    """Collects statistics of the state while a model computes.

    Attributes:
        writes (list[Write]): By depth.
        reads (dict[str, list[float]]): By depth, for each reader and image: the root mean square of what is read, over
            that of what it is added to.

    Args:
        backbone (nn.Module): An S6LA backbone, in evaluation mode.

    Raises:
        UsageError: If it has no cells.

    Example:
        >>> import torch
        >>> from s6la_mm.backbones import S6LAResNet
        >>> backbone = S6LAResNet(18).eval()
        >>> analysis = StateAnalysis(backbone)
        >>> with analysis.watching(), torch.no_grad():
        ...     _ = backbone(torch.rand(1, 3, 64, 64))
        >>> len(analysis.writes), len(analysis.reads), analysis.reads['layer4.1.read']
        (7, 8, [0.0])
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.writes: list[Write] = []
        self.reads: dict[str, list[float]] = {}
        self._readers = {m: name for name, m in backbone.named_modules() if isinstance(m, (StateRead, TokenRead))}
        if not self._readers:
            raise UsageError(f'{type(backbone).__name__} carries no state: this needs an S6LA backbone')

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collects within the block."""
        handles = [self.backbone.register_forward_pre_hook(self._begin)]
        handles += watch_cells(self.backbone, self._look_at_write)
        handles += [reader.register_forward_hook(self._look_at_read) for reader in self._readers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, *_: Any) -> None:
        self._write = 0

    @torch.no_grad()
    def _look_at_write(self, name: str, cell: nn.Module, x: Tensor, h: Tensor) -> None:
        if self._write == len(self.writes):
            self.writes.append(Write(name))
        write = self.writes[self._write]
        self._write += 1
        delta, decay = cell.gates(x)
        write.delta.append(_some(delta))
        write.decay.append(_some(decay))
        is_map = h.dim() == 4
        write.channel_decay.append(decay.mean((0, 2, 3) if is_map else 0).cpu())
        write.rms.append(float(h.float().square().mean().sqrt()))
        write.map = h[0].float().cpu() if is_map else None
        if is_map:
            write.regression = write.regression or Regression()
            pixels = [values.movedim(1, -1).flatten(0, 2) for values in (x, h)]
            write.regression.add(*(rows[:: max(1, len(rows) // PIXELS)].cpu() for rows in pixels))

    @torch.no_grad()
    def _look_at_read(self, reader: nn.Module, args: tuple, out: Tensor) -> None:
        if isinstance(reader, StateRead):
            read = reader.contribution(args[0])
            own = out - read
        else:
            own = args[0]
            read = out - own
        share = read.float().square().mean().sqrt() / own.float().square().mean().sqrt().clamp(min=1e-12)
        self.reads.setdefault(self._readers[reader], []).append(float(share))

    def retention(self) -> Tensor:
        """How much of what was written at one depth is left at another.

        Returns:
            Tensor: (writes, writes); row t, column s ≤ t: the mean over the channels of the product of the mean decays
                of the writes s + 1 … t. 1 on the diagonal. NaN between stages whose states have different shapes, where
                a learned map lies between.
        """
        decays = [torch.stack(write.channel_decay).mean(0) for write in self.writes]
        count = len(decays)
        matrix = torch.full((count, count), float('nan'))
        for s in range(count):
            left = torch.ones_like(decays[s])
            matrix[s, s] = 1.0
            for t in range(s + 1, count):
                if decays[t].shape != left.shape:
                    break
                left = left * decays[t]
                matrix[t, s] = left.mean()
        return matrix

    def summary(self) -> dict:
        """The figures as JSON takes them: percentiles and what is held by write, shares by read.

        ``held`` of a write is the sum of its row of :meth:`retention`: how many writes, itself included, the state
        holds, each counted by what is left of it. ``new`` is the share of the state's variance over the pixels that no
        linear map of the block's output gives: what the next block's first convolution does not have yet. None for
        tokens, and where there are too few pixels for as many channels.
        """
        retention = self.retention()
        levels = [5, 25, 50, 75, 95]
        writes = []
        for row, write in zip(retention, self.writes):
            delta, decay = torch.cat(write.delta), torch.cat(write.decay)
            writes.append(
                dict(
                    cell=write.cell,
                    delta=np.percentile(delta.numpy(), levels).tolist(),  # torch.quantile ends at 16 million samples
                    decay=np.percentile(decay.numpy(), levels).tolist(),
                    state_rms=sum(write.rms) / len(write.rms),
                    held=float(row.nansum()),
                    new=_finite(write.regression.unexplained()) if write.regression else None,
                )
            )
        reads = [dict(name=name, share=sum(shares) / len(shares)) for name, shares in self.reads.items()]
        return dict(percentiles=levels, writes=writes, reads=reads)


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _some(values: Tensor) -> Tensor:
    """Evenly spread samples of a tensor."""
    values = values.float().flatten()
    return values[:: max(1, len(values) // SAMPLES)][: 2 * SAMPLES].cpu()
