"""Look inside a trained S6LA model: what its state keeps, selects, and hands to the blocks, as figures and a page."""

from __future__ import annotations

import argparse
import json
import math
import os.path as osp

import matplotlib

matplotlib.use('Agg')  # no display needed; before pyplot

import numpy as np
import torch
from matplotlib import pyplot as plt

import s6la_mm  # noqa: F401  (registers the backbones; allow-lists what checkpoints hold)
from s6la_mm.analysis.page import write_page
from s6la_mm.analysis.state import StateAnalysis
from s6la_mm.common.cli import add_cfg_options, clear_errors, find_images, load_config, require_file, require_writable
from s6la_mm.common.configs import package_of
from s6la_mm.common.failures import Failures
from s6la_mm.common.files import write_atomically
from s6la_mm.common.fonts import make_figure_legible
from s6la_mm.common.inference import init_model, predictor, read_image

FIGURES = {
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


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', help='images, folders, or quoted glob patterns')
    parser.add_argument('--out-dir', default='state', help='gets index.html, figures and analysis.json (state)')
    parser.add_argument('--maps', type=int, default=2, help='images beside which the state is shown (2)')
    parser.add_argument('--device', help='cpu, cuda:0 … (default: an accelerator if there is one)')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.maps < 0:
        parser.error(f'--maps {args.maps} must not be negative')
    return args


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
        ('decay.png', draw_decay(summary)),
        ('delta.png', draw_delta(analysis, summary)),
        ('norms.png', draw_norms(summary)),
        ('retention.png', draw_retention(analysis, summary)),
    ):
        save(figure, osp.join(folder, name))
    sections = [dict(head=head, text=text, pictures=[name]) for name, (head, text) in FIGURES.items()]
    for number, (path, pixels, states) in enumerate(maps):
        name = f'maps_{number}.png'
        save(draw_maps(pixels, states, analysis), osp.join(folder, name))
        text = 'The four channels that vary most, after the last write of each stage.'
        sections.append(dict(head=f'State beside the image {osp.basename(path)}', text=text, pictures=[name]))
    page = osp.join(folder, 'index.html')
    write_page(page, title, f'Checkpoint: {checkpoint}; images: {len(analysis.writes[0].rms)}', sections)
    return page


def save(figure: plt.Figure, path: str) -> None:
    """Writes a figure and closes it."""
    make_figure_legible(figure)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def label_writes(axis: plt.Axes, summary: dict) -> None:
    """Names the cells of the writes below an axis."""
    cells = [write['cell'].rpartition('.')[2] for write in summary['writes']]
    first = [i for i, cell in enumerate(cells) if i == 0 or cell != cells[i - 1]]
    axis.set_xticks(first, [cells[i] for i in first], rotation=30, ha='right')
    axis.set_xlabel('write, by depth')


def draw_decay(summary: dict) -> plt.Figure:
    """Percentiles of the decays, by write."""
    figure, axis = plt.subplots(figsize=(8, 4), layout='constrained')
    low, lower, median, upper, high = np.array([write['decay'] for write in summary['writes']]).T
    steps = np.arange(len(median))
    axis.fill_between(steps, low, high, alpha=0.2, color='C0')
    axis.fill_between(steps, lower, upper, alpha=0.4, color='C0')
    axis.plot(steps, median, color='C0', marker='.')
    axis.set(ylim=(0, 1), ylabel='exp(Δ A)')
    axis.grid(alpha=0.3)
    label_writes(axis, summary)
    return figure


def draw_delta(analysis: StateAnalysis, summary: dict) -> plt.Figure:
    """Histograms of the step sizes, by write."""
    figure, axis = plt.subplots(figsize=(8, 4), layout='constrained')
    bins = np.logspace(-5, 2, 71)
    rows = [np.histogram(torch.cat(write.delta).clamp(1e-5, 1e2).numpy(), bins)[0] for write in analysis.writes]
    shares = np.array([row / row.sum() for row in rows]).T
    mesh = axis.pcolormesh(np.arange(len(rows) + 1) - 0.5, bins, shares, cmap='viridis')
    axis.set(yscale='log', ylabel='Δ')
    label_writes(axis, summary)
    figure.colorbar(mesh, label='share of channels and pixels')
    return figure


def draw_norms(summary: dict) -> plt.Figure:
    """The size of the state, of what is read, and the share of the state that is new."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout='constrained')
    left.plot([write['state_rms'] for write in summary['writes']], marker='.')
    left.set(ylabel='root mean square of the state', ylim=(0, None))
    label_writes(left, summary)
    names = [read['name'].removesuffix('.read') for read in summary['reads']]
    middle.bar(range(len(names)), [read['share'] for read in summary['reads']])
    middle.set_xticks(range(len(names)), names, rotation=60, ha='right', fontsize=7 if len(names) > 16 else 9)
    middle.set(ylabel='read / own')
    right.plot([math.nan if write['new'] is None else write['new'] for write in summary['writes']], marker='.')
    right.set(ylabel='share of the state that is new', ylim=(0, 1))
    label_writes(right, summary)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    return figure


def draw_retention(analysis: StateAnalysis, summary: dict) -> plt.Figure:
    """What is left of one write at another."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
    image = left.imshow(analysis.retention().numpy(), vmin=0, vmax=1, cmap='viridis')
    left.set(xlabel='written at', ylabel='left at')
    figure.colorbar(image, ax=left)
    right.plot([write['held'] for write in summary['writes']], marker='.')
    right.plot(range(len(summary['writes'])), range(1, len(summary['writes']) + 1), '--', color='gray', lw=1)
    right.set(ylabel='writes held (dashed: all)', ylim=(0, None))
    right.grid(alpha=0.3)
    label_writes(right, summary)
    return figure


def liveliest_channels(state: torch.Tensor, number: int) -> list[int]:
    """The channels of a state map (N, H, W) that vary most over the image, relative to their size."""
    spread = state.std((1, 2), unbiased=False) / (state.square().mean((1, 2)).sqrt() + 1e-12)
    return spread.argsort(descending=True)[:number].tolist()


def draw_maps(pixels: np.ndarray, states: dict[int, torch.Tensor], analysis: StateAnalysis) -> plt.Figure:
    """The liveliest channels of states beside their image."""
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


def main() -> None:
    """Run the images, write the page and print its path."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
        require_file(args.checkpoint, 'checkpoint')
        images = find_images(args.images)
        require_writable(args.out_dir)
        if package_of(cfg) == 'mmseg':
            cfg.model.test_cfg = dict(mode='whole')  # one pass over an image: windows would have states of their own
    with clear_errors(cfg):
        model = init_model(cfg, args.checkpoint, args.device)
        predict = predictor(cfg, model)
        analysis = StateAnalysis(model.backbone)
    maps: list[tuple[str, np.ndarray, dict[int, torch.Tensor]]] = []
    failures = Failures()
    for path in images:
        with failures.of(path):
            pixels = read_image(path)
            with analysis.watching():
                predict(path)
            last = {write.cell: index for index, write in enumerate(analysis.writes)}  # of each stage
            states = {index: analysis.writes[index].map for index in last.values()}
            if len(maps) < args.maps and None not in states.values():
                maps.append((path, pixels, states))
    if not failures.succeeded:
        failures.end()
    title = f'The state of {osp.splitext(osp.basename(args.config))[0]}'
    page = write_state_page(analysis, maps, title, args.checkpoint, args.out_dir)
    summary = analysis.summary()
    for write in summary['writes']:
        new = '' if write['new'] is None else f'  new {write["new"]:.2f}'
        print(
            f'{write["cell"]:<20} decay {write["decay"][2]:.3f} [{write["decay"][0]:.3f} .. {write["decay"][4]:.3f}]  '
            f'Δ {write["delta"][2]:.4f}  state {write["state_rms"]:.3f}  holds {write["held"]:.1f} writes{new}'
        )
    print('reads: ' + ', '.join(f'{read["share"]:.3f}' for read in summary['reads']))
    print(f'Page: {page}')
    failures.end()


if __name__ == '__main__':
    main()
