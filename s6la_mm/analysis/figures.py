"""Figures and a page of a :class:`StateAnalysis`."""

from __future__ import annotations

import json
import math
import os.path as osp

import matplotlib

matplotlib.use('Agg')  # no display needed; before pyplot

import numpy as np
import torch
from matplotlib import pyplot as plt

from ..common.files import write_atomically
from .page import write_page
from .state import StateAnalysis, liveliest_channels

_FIGURES = {
    'decay.png': (
        'Decay exp(Δ A) of every write',
        'Line: median; bands: 25 to 75 and 5 to 95 % of channels and pixels. 1 keeps the state as it was, 0 forgets it.'
        ' A band that stays thin does not select: all pixels are written alike.',
    ),
    'delta.png': (
        'Step sizes Δ',
        'A histogram for every write. It starts log-uniform in the range of the option dt_range, by default 0.001 to '
        '0.1; selection spreads it.',
    ),
    'norms.png': (
        'State and reads over depth',
        'Left: root mean square of the state after every write. Middle: that of what a block reads, over that of its '
        'own first convolution (of the tokens, in a transformer). 0: this block ignores the state. Right: the share of '
        "the state's variance that is no linear map of the output just written. 0: the next block has all of it "
        'without the state (not for tokens, and not where there are too few pixels).',
    ),
    'retention.png': (
        'What the state holds',
        'Left: how much of what was written at one depth (column) is left at another (row). Right: the sum of each '
        'row, the number of writes that the state holds.',
    ),
}


def write_state_page(
    analysis: StateAnalysis,
    maps: list[tuple[str, np.ndarray, dict[int, torch.Tensor]]],
    title: str,
    checkpoint: str,
    folder: str,
) -> str:
    """Writes ``index.html``, its figures and ``analysis.json``.

    Args:
        analysis (StateAnalysis): After some images.
        maps (list): For each image that is shown: its path, its pixels (height, width, 3; RGB, uint8) and the states
            (N, H, W) by the number of their write.
        title (str): Of the page.
        checkpoint (str): For the page.
        folder (str): An existing folder.

    Returns:
        str: Path of the page.
    """
    summary = analysis.summary()
    write_atomically(osp.join(folder, 'analysis.json'), json.dumps(summary, indent=1))
    for name, figure in (
        ('decay.png', _draw_decay(summary)),
        ('delta.png', _draw_delta(analysis, summary)),
        ('norms.png', _draw_norms(summary)),
        ('retention.png', _draw_retention(analysis, summary)),
    ):
        _save(figure, osp.join(folder, name))
    sections = [dict(head=head, text=text, pictures=[name]) for name, (head, text) in _FIGURES.items()]
    for number, (path, pixels, states) in enumerate(maps):
        name = f'maps_{number}.png'
        _save(_draw_maps(pixels, states, analysis), osp.join(folder, name))
        text = 'The four channels that vary most, after the last write of each stage.'
        sections.append(dict(head=f'State beside the image {osp.basename(path)}', text=text, pictures=[name]))
    page = osp.join(folder, 'index.html')
    write_page(page, title, f'Checkpoint: {checkpoint}; images: {len(analysis.writes[0].rms)}', sections)
    return page


def _save(figure: plt.Figure, path: str) -> None:
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _label_writes(axis: plt.Axes, summary: dict) -> None:
    cells = [write['cell'].rpartition('.')[2] for write in summary['writes']]
    first = [i for i, cell in enumerate(cells) if i == 0 or cell != cells[i - 1]]
    axis.set_xticks(first, [cells[i] for i in first], rotation=30, ha='right')
    axis.set_xlabel('write, by depth')


def _draw_decay(summary: dict) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(8, 4), layout='constrained')
    low, lower, median, upper, high = np.array([write['decay'] for write in summary['writes']]).T
    steps = np.arange(len(median))
    axis.fill_between(steps, low, high, alpha=0.2, color='C0')
    axis.fill_between(steps, lower, upper, alpha=0.4, color='C0')
    axis.plot(steps, median, color='C0', marker='.')
    axis.set(ylim=(0, 1), ylabel='exp(Δ A)')
    axis.grid(alpha=0.3)
    _label_writes(axis, summary)
    return figure


def _draw_delta(analysis: StateAnalysis, summary: dict) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(8, 4), layout='constrained')
    bins = np.logspace(-5, 2, 71)
    rows = [np.histogram(torch.cat(write.delta).clamp(1e-5, 1e2).numpy(), bins)[0] for write in analysis.writes]
    shares = np.array([row / row.sum() for row in rows]).T
    mesh = axis.pcolormesh(np.arange(len(rows) + 1) - 0.5, bins, shares, cmap='viridis')
    axis.set(yscale='log', ylabel='Δ')
    _label_writes(axis, summary)
    figure.colorbar(mesh, label='share of channels and pixels')
    return figure


def _draw_norms(summary: dict) -> plt.Figure:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout='constrained')
    left.plot([write['state_rms'] for write in summary['writes']], marker='.')
    left.set(ylabel='root mean square of the state', ylim=(0, None))
    _label_writes(left, summary)
    names = [read['name'].removesuffix('.read') for read in summary['reads']]
    middle.bar(range(len(names)), [read['share'] for read in summary['reads']])
    middle.set_xticks(range(len(names)), names, rotation=60, ha='right', fontsize=7 if len(names) > 16 else 9)
    middle.set(ylabel='read / own')
    right.plot([math.nan if write['new'] is None else write['new'] for write in summary['writes']], marker='.')
    right.set(ylabel='share of the state that is new', ylim=(0, 1))
    _label_writes(right, summary)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    return figure


def _draw_retention(analysis: StateAnalysis, summary: dict) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
    image = left.imshow(analysis.retention().numpy(), vmin=0, vmax=1, cmap='viridis')
    left.set(xlabel='written at', ylabel='left at')
    figure.colorbar(image, ax=left)
    right.plot([write['held'] for write in summary['writes']], marker='.')
    right.plot(range(len(summary['writes'])), range(1, len(summary['writes']) + 1), '--', color='gray', lw=1)
    right.set(ylabel='writes held (dashed: all)', ylim=(0, None))
    right.grid(alpha=0.3)
    _label_writes(right, summary)
    return figure


def _draw_maps(pixels: np.ndarray, states: dict[int, torch.Tensor], analysis: StateAnalysis) -> plt.Figure:
    figure, axes = plt.subplots(len(states), 5, figsize=(14, 2.3 * len(states)), layout='constrained', squeeze=False)
    for row, (number, state) in zip(axes, states.items()):
        row[0].imshow(pixels)
        row[0].set_title(f'{analysis.writes[number].cell.rpartition(".")[2]}, write {number + 1}', fontsize=9)
        for axis, channel in zip(row[1:], liveliest_channels(state, 4)):
            axis.imshow(state[channel].numpy(), cmap='magma')
            axis.set_title(f'channel {channel}', fontsize=9)
        for axis in row:
            axis.axis('off')
    return figure
