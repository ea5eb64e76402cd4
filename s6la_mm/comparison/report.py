"""The report of a comparison: tables, curves, settings, and what did not finish."""

from __future__ import annotations

import itertools
import json
import os
import os.path as osp
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from importlib import import_module

from scipy import stats

from ..benchmarks.timing import paired_ratios
from ..common.files import write_atomically
from ..common.fonts import make_figure_legible
from .plan import Plan, Progress, Run

_PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 's6la_mm')


def write_report(plan: Plan, runs: Sequence[Run], costs: dict | None, folder: str, command: str) -> str:
    """Writes ``README.md``, ``curves.png`` and ``results.json``.

    Args:
        plan (Plan): The plan.
        runs (Sequence[Run]): All its runs, in whatever state.
        costs (dict, optional): What tools/analysis_tools/compare.py measured.
        folder (str): Where the files go; made if it is missing.
        command (str): The command line that trains and reports all of it, for the report.

    Returns:
        str: The tables, as in the report.
    """
    os.makedirs(folder, exist_ok=True)
    table: dict[str, dict[int, Progress]] = {variant.name: {} for variant in plan.variants}
    for run in runs:
        table[run.variant.name][run.seed] = run.progress(plan.metric)
    tables = '\n'.join([*_results(plan, table, costs), '', *_seeds(plan, table), '', *_losses(plan, table)])
    problems = _problems(table)
    text = [f'# {plan.title}', '', plan.notes, '', tables, '', '![curves](curves.png)', '']
    if problems:
        text += ['## Not finished', '', *problems, '']
    text += ['## Settings', '', *_settings(plan, table, costs, command)]
    draw_curves(plan, table, osp.join(folder, 'curves.png'))
    write_atomically(osp.join(folder, 'README.md'), '\n'.join(text).replace('\n\n\n', '\n\n') + '\n')
    results = dict(
        metric=plan.metric,
        reference=plan.reference,
        versions=versions(),
        runs=[
            dict(name=name, seed=seed, settings=plan.digests[name], **progress._asdict())
            for name, by in table.items()
            for seed, progress in by.items()
        ],
        costs=costs,
    )
    write_atomically(osp.join(folder, 'results.json'), json.dumps(results, indent=1) + '\n')
    return '\n'.join([tables, *problems])


def _results(plan: Plan, table: dict[str, dict[int, Progress]], costs: dict | None) -> list[str]:
    head = ['model', 'runs', f'{plan.metric}, mean ± sd', f'minus {plan.reference} [95 % interval]']
    if costs:
        head += ['parameters', 'GFLOPs', 's / step', f'step / {plan.reference} [min .. max]', 'peak memory']
    rows = [head]
    values = _known({name: {s: p.value for s, p in by_seed.items()} for name, by_seed in table.items()})
    digits = _digits(table)
    for name in table:
        count = f'{len(values[name])} of {len(plan.seeds)}'
        cells = [name, count, *_compared(values, name, plan.reference, digits)]
        if costs:
            cells += _cost_cells(costs['models'], name, plan.reference)
        rows.append(cells)
    return _table(rows)


def _losses(plan: Plan, table: dict[str, dict[int, Progress]]) -> list[str]:
    losses = _known({name: {s: p.final_loss for s, p in by_seed.items()} for name, by_seed in table.items()})
    head = ['model', 'training loss, last quarter', f'minus {plan.reference} [95 % interval]']
    rows = [head]
    rows += [[name, *_compared(losses, name, plan.reference, digits=4)] for name in table]
    return _table(rows)


def _table(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table whose head is the first row."""
    return ['| ' + ' | '.join(row) + ' |' for row in (rows[0], ['---'] * len(rows[0]), *rows[1:])]


def _known(values: dict[str, dict[int, float | None]]) -> dict[str, dict[int, float]]:
    return {name: {s: v for s, v in by_seed.items() if v is not None} for name, by_seed in values.items()}


def _compared(values: dict[str, dict[int, float]], name: str, reference: str, digits: int) -> list[str]:
    """Cells for the mean of a model's seeds, and for the difference to the reference."""
    difference = _difference(values[name], values[reference], digits) if name != reference else ''
    return [_mean(list(values[name].values()), digits), difference]


def _mean(values: list[float], digits: int) -> str:
    if not values:
        return '–'
    spread = f' ± {_number(statistics.stdev(values), digits)}' if len(values) > 1 else ''
    return _number(statistics.mean(values), digits) + spread


def _difference(values: dict[int, float], base: dict[int, float], digits: int) -> str:
    seeds = sorted(values.keys() & base.keys())
    if not seeds:
        return '–'
    mean, interval = paired_difference([values[seed] for seed in seeds], [base[seed] for seed in seeds])
    spread = f' [{_number(interval[0], digits, "+")}, {_number(interval[1], digits, "+")}]' if interval else ''
    missing = len(seeds) < max(len(values), len(base))
    return _number(mean, digits, '+') + spread + (f' ({len(seeds)} pairs)' if missing else '')


def _number(value: float, digits: int, sign: str = '') -> str:
    return f'{value:{sign}.{digits}f}'


def _digits(table: dict[str, dict[int, Progress]]) -> int:
    """mIoU comes in percent, box AP as a fraction: two digits of a percent either way."""
    values = [p.value for by_seed in table.values() for p in by_seed.values() if p.value is not None]
    return 2 if any(abs(value) > 1 for value in values) else 4


def _cost_cells(models: dict, name: str, reference: str) -> list[str]:
    own, base = models[name], models[reference]
    ratios = paired_ratios(own['seconds'], base['seconds'])
    return [
        f'{own["parameters"] / 1e6:.2f} M',
        f'{own["flops"] / 1e9:.2f}',
        f'{statistics.median(own["seconds"]):.3f}',
        str(ratios) if name != reference else '',
        f'{own["memory"] / 2**20:.0f} MiB',
    ]


def _seeds(plan: Plan, table: dict[str, dict[int, Progress]]) -> list[str]:
    rows = [['model', *(f'seed {seed}' for seed in plan.seeds)]]
    digits = _digits(table)
    for name, by_seed in table.items():
        cells = [by_seed[seed] for seed in plan.seeds]
        rows.append([name, *(_number(c.value, digits) if c.value is not None else c.status for c in cells)])
    return _table(rows)


def _problems(table: dict[str, dict[int, Progress]]) -> list[str]:
    return [
        f'- {name}, seed {seed}: {progress.status} at iteration {progress.iteration}'
        + (f': {progress.reason}' if progress.reason else '')
        for name, by_seed in table.items()
        for seed, progress in by_seed.items()
        if progress.status != 'finished'
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a training uses, by name."""
    found = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = import_module(name).__version__
        except ImportError:
            found[name] = 'not installed'
    return found


def versions_text() -> str:
    """The versions in a line."""
    return ', '.join(f'{name} {version}' for name, version in versions().items())


def _settings(plan: Plan, table: dict[str, dict[int, Progress]], costs: dict | None, command: str) -> list[str]:
    finished = [p for by_seed in table.values() for p in by_seed.values() if p.status == 'finished']
    counts = Counter(progress.trained_on or 'hardware that was not noted' for progress in finished)
    trained_on = '; '.join(f'{count} on {hardware}' for hardware, count in counts.items())
    lines = [
        f'- Command: `{command}`',
        f'- Finished trainings: {trained_on or "none"}',
        f'- Versions where this was written: {versions_text()}',
        f'- Seeds: {", ".join(map(str, plan.seeds))}',
    ]
    if costs and plan.shape:
        height, width = plan.shape
        rounds = len(costs['models'][plan.reference]['seconds'])
        lines.append(
            f'- Times and memory: {costs["hardware"]}. '
            f'Parameters, FLOPs (a multiply-add is one) and steps are of whole models; FLOPs of an image of {height} '
            f'× {width}; s / step: median of {rounds} training steps with random images of that size, in alternating '
            'rounds; peak memory of such steps, weights and optimizer included'
        )
    options = [variant.cfg_options for variant in plan.variants]
    common = {k: v for k, v in options[0].items() if all(k in other and other[k] == v for other in options)}
    if common:
        lines += ['- All models:', *_options(common)]
    for variant in plan.variants:
        lines.append(f'- {variant.name}: `{osp.basename(variant.config)}`' + _from(variant.start))
        lines += _options({key: value for key, value in variant.cfg_options.items() if key not in common})
    return lines


def _options(options: dict) -> list[str]:
    return [f'    - `{key} = {value!r}`' for key, value in options.items()]


def _from(start: str | None) -> str:
    return f', from the weights of {start} with the same seed' if start else ''


def draw_curves(plan: Plan, table: dict[str, dict[int, Progress]], path: str) -> None:
    """Draws the metric (mean and range of the seeds) and the loss over the iterations."""
    import matplotlib

    matplotlib.use('Agg')  # no display needed; before pyplot
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    colors = plt.get_cmap('tab10' if len(table) <= 10 else 'tab20').colors
    for color, (name, by_seed) in zip(itertools.cycle(colors), table.items()):
        for axis, curves in zip(axes, ([p.curve for p in by_seed.values()], [p.losses for p in by_seed.values()])):
            curves = [curve for curve in curves if curve]
            steps = sorted({step for curve in curves for step in curve})
            groups = [[curve[step] for curve in curves if step in curve] for step in steps]
            axis.plot(steps, [statistics.mean(group) for group in groups], label=name, color=color, marker='.', ms=4)
            axis.fill_between(steps, [min(g) for g in groups], [max(g) for g in groups], alpha=0.15, color=color)
    for axis, title in zip(axes, (f'validation {plan.metric}', 'training loss')):
        axis.set(xlabel='iteration', title=f'{title}: mean and range of the seeds')
        axis.grid(alpha=0.3)
    axes[0].legend()
    make_figure_legible(figure)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def paired_difference(values: Sequence[float], base: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean of the pairs' differences with its 95 % interval of Student's t, None for a single pair.

    Args:
        values (Sequence[float]): Figures of one model, a seed each.
        base (Sequence[float]): Those of the other, in the same order.

    Raises:
        ValueError: If there are no pairs.

    Example:
        >>> mean, (low, high) = paired_difference([41.2, 41.7, 40.8], [39.3, 38.1, 39.9])
        >>> print(f'{mean:.2f}, {low:.2f} to {high:.2f}')
        2.13, -1.26 to 5.52
    """
    if not values or len(values) != len(base):
        raise ValueError(f'{len(values)} and {len(base)} values are no pairs')
    mean = statistics.mean(value - other for value, other in zip(values, base))
    if len(values) < 2:
        return mean, None
    low, high = stats.ttest_rel(values, base).confidence_interval()
    return mean, (float(low), float(high))
