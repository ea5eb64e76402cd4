"""Comparisons of models under equal budgets: what a plan says, how far its runs are, and what their figures mean."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import os.path as osp
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from mmengine.config import Config

from ..analysis.logs import read_losses
from ..common.cli import DATA_ROOTS, require_file
from ..common.configs import name_classes
from ..common.errors import UsageError
from ..common.files import read_json, write_atomically
from ..config_types import type_name

_ENTRIES = dict(
    config=str, metric=str, reference=str, seeds=list, runs=list, shape=tuple, cfg_options=dict, title=str, notes=str
)
_REQUIRED = ('config', 'metric', 'seeds', 'runs')
_SETTINGS = '# settings: '
_DETECTION = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@dataclass(frozen=True)
class Variant:
    """One row of a comparison: a model, or a way to train it.

    Attributes:
        name (str): In tables and as the name of a folder.
        config (str): Config file.
        cfg_options (dict): Changes to the config, the plan's own included; dotted keys.
        start (str or None): Name of the variant whose last checkpoint of the same seed this one starts from.
        content (Config): What is in the config file, which takes a second to read.
    """

    name: str
    config: str
    cfg_options: dict
    start: str | None
    content: Config = field(repr=False, compare=False)

    def build_config(self) -> Config:
        """The training config, without seed and folder."""
        cfg = copy.deepcopy(self.content)
        cfg.merge_from_dict(copy.deepcopy(self.cfg_options))
        return cfg


@dataclass(frozen=True)
class Plan:
    """What is compared; see :func:`read_plan`."""

    path: str
    title: str
    notes: str
    metric: str
    reference: str
    seeds: tuple[int, ...]
    shape: tuple[int, int] | None
    variants: tuple[Variant, ...]

    @cached_property
    def digests(self) -> dict[str, str]:
        """A hash of all settings of every variant and of what it starts from, by its name; not of where data lie."""
        roots = (*DATA_ROOTS, 'S6LA_SHAPES_ROOT')
        kept = {name: os.environ.pop(name) for name in roots if name in os.environ}
        try:
            found: dict[str, str] = {}
            contents = {path: Config.fromfile(path) for path in {variant.config for variant in self.variants}}
            for variant in self.variants:
                cfg = replace(variant, content=contents[variant.config]).build_config()
                text = cfg.pretty_text + found.get(variant.start or '', '')
                found[variant.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
            return found
        finally:
            os.environ.update(kept)


def read_plan(path: str) -> Plan:
    """Reads a plan and checks all that can be wrong with it before hours are spent.

    A plan is a Python file of mmengine's Config with ``config`` (a path relative to the plan), ``metric`` (a key of the
    evaluator), ``seeds``, ``runs`` (a list of ``dict(name=..., config=..., cfg_options=..., start=...)``, all but the
    name optional), and where wanted ``cfg_options`` for all runs, ``reference`` (the name that the others are compared
    to; the first one if it is missing), ``shape`` (height and width for FLOPs and times), ``title`` and ``notes``.

    Args:
        path (str): The file.

    Returns:
        Plan: The plan.

    Raises:
        FileNotFoundError: If the plan or a config is not there.
        UsageError: If an entry is missing, unknown or of the wrong type, two runs have one name, a start or the
            reference is no run, or the evaluator of a config does not give the metric.

    Example:
        >>> plan = read_plan('configs/comparisons/camvid_r18.py')
        >>> [variant.name for variant in plan.variants]
        ['ResNet-18', 'RLA-ResNet-18', 'MRLA-ResNet-18', 'S6LA-ResNet-18']
    """
    require_file(path, 'plan')
    entries = Config.fromfile(path)._cfg_dict.to_dict()
    for name in _REQUIRED:
        if not entries.get(name):
            raise UsageError(f'{path}: {name} is missing')
    for name, value in entries.items():
        if name not in _ENTRIES:
            raise UsageError(f'{path}: {name} is no entry of a plan: it takes {", ".join(_ENTRIES)}')
        kind = (tuple, list) if _ENTRIES[name] in (tuple, list) else _ENTRIES[name]
        if not isinstance(value, kind):
            raise UsageError(f'{path}: {name}={value!r} must be a {_ENTRIES[name].__name__}')
    seeds = tuple(entries['seeds'])
    if len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise UsageError(f'{path}: seeds={list(seeds)} must be different integers, none below 0')
    contents: dict[str, Config] = {}
    variants = tuple(_read_variant(path, entries, run, contents) for run in entries['runs'])
    names = [variant.name for variant in variants]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UsageError(f'{path}: two runs have the name {doubled[0]!r}')
    reference = entries.get('reference', names[0])
    for name, known in ((reference, 'reference'), *((v.start, f'start of {v.name}') for v in variants if v.start)):
        if name not in names:
            raise UsageError(f'{path}: {known}={name!r} is none of the runs {", ".join(names)}')
    for variant in variants:
        if variant.start and names.index(variant.start) >= names.index(variant.name):
            raise UsageError(f'{path}: {variant.name} must come after {variant.start}, from which it starts')
        _check_metric(path, variant, entries['metric'])
    shape = entries.get('shape')
    if shape is not None and (len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape)):
        raise UsageError(f'{path}: shape={shape} must be two positive integers, height and width')
    return Plan(
        path=path,
        title=entries.get('title', osp.splitext(osp.basename(path))[0]),
        notes=entries.get('notes', ''),
        metric=entries['metric'],
        reference=reference,
        seeds=seeds,
        shape=tuple(shape) if shape else None,
        variants=variants,
    )


def _read_variant(path: str, entries: dict, run: dict, contents: dict[str, Config]) -> Variant:
    unknown = set(run) - {'name', 'config', 'cfg_options', 'start'}
    if 'name' not in run or unknown:
        raise UsageError(f'{path}: a run has a name and may have config, cfg_options and start: {run}')
    name = run['name']
    if not name or name.startswith('.') or '/' in name:
        raise UsageError(f'{path}: the name {name!r} must be one of a folder')
    config = osp.join(osp.dirname(path), run.get('config', entries['config']))
    require_file(config, f'config of {name}:')
    options = {**entries.get('cfg_options', {}), **run.get('cfg_options', {})}
    if config not in contents:
        contents[config] = Config.fromfile(config)
    return Variant(name, config, options, run.get('start'), contents[config])


def _check_metric(path: str, variant: Variant, metric: str) -> None:
    try:
        cfg = variant.build_config()
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(f'{path}: cfg_options of {variant.name} do not fit {variant.config}: {error}') from error
    given = metrics_of(cfg)
    if given is not None and metric not in given:
        raise UsageError(f'{path}: the evaluator of {variant.name} does not give {metric!r}, but {", ".join(given)}')


def metrics_of(cfg: Config) -> list[str] | None:
    """The keys that the evaluators of a config give; None if one of them is not known here.

    Example:
        >>> metrics_of(Config(dict(val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']))))
        ['aAcc', 'mIoU', 'mAcc']
    """
    evaluators = cfg.get('val_evaluator') or []
    keys = []
    for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
        kind = type_name(evaluator)
        if kind == 'IoUMetric':
            own = dict(mIoU=['mIoU', 'mAcc'], mDice=['mDice', 'mAcc'], mFscore=['mFscore', 'mPrecision', 'mRecall'])
            keys += ['aAcc'] + [key for name in evaluator.get('iou_metrics', ['mIoU']) for key in own.get(name, [])]
        elif kind == 'CocoMetric':
            wanted = evaluator.get('metric', 'bbox')
            wanted = [wanted] if isinstance(wanted, str) else wanted
            keys += [f'coco/{name}_{key}' for name in wanted for key in _DETECTION if name != 'proposal_fast']
        elif kind == 'Accuracy' and 'thrs' not in evaluator:
            topk = evaluator.get('topk', (1,))
            keys += [f'accuracy/top{k}' for k in ([topk] if isinstance(topk, int) else topk)]
        else:
            return None
    return list(dict.fromkeys(keys))


class Progress(NamedTuple):
    """How far a run is: ``'finished'``, ``'failed'``, ``'unfinished'`` or ``'not started'``, and its figures."""

    status: str
    iteration: int
    value: float | None
    curve: dict[int, float]
    losses: dict[int, float]
    reason: str = ''
    trained_on: str = ''

    @property
    def final_loss(self) -> float | None:
        """Mean of the training loss in the last quarter of a finished run: far less noisy than a metric."""
        if self.status != 'finished' or not self.losses:
            return None
        return statistics.mean(loss for step, loss in self.losses.items() if step > 0.75 * max(self.losses))


@dataclass(frozen=True)
class Run:
    """One training: a variant with a seed, in a folder of its own.

    Attributes:
        variant (Variant): What is trained.
        seed (int): With which seed.
        folder (str): Where.
        earlier (Progress or None): What an earlier report says of the same training, which is then finished already.
    """

    variant: Variant
    seed: int
    folder: str
    earlier: Progress | None = None

    @property
    def config_path(self) -> str:
        """Where its config is written: beside the folder, into which the training writes what it made of it."""
        return f'{self.folder}.py'

    @property
    def _outcome_path(self) -> str:
        return osp.join(self.folder, 'outcome.json')

    def write_config(self, cfg: Config, settings: str) -> None:
        """Writes its config, with the hash of its settings, see :attr:`Plan.digests`, in the first line."""
        name_classes(cfg)
        write_atomically(self.config_path, f'{_SETTINGS}{settings}\n{cfg.pretty_text}')

    def check_settings(self, settings: str) -> None:
        """Makes sure that what its folder holds was trained with these settings.

        Args:
            settings (str): Their hash.

        Raises:
            UsageError: If it was not.
        """
        if not osp.exists(self.config_path):
            return
        with open(self.config_path, encoding='utf-8') as file:
            if file.readline().strip() != f'{_SETTINGS}{settings}':
                raise UsageError(
                    f'{self.folder} has a run of another config: choose another --out, or delete that folder and '
                    f'{self.config_path}'
                )

    def outcome(self) -> dict | None:
        """How it ended, None if it did not; a damaged note counts as a failure, which ``--retry`` trains again."""
        try:
            here = read_json(self._outcome_path)
        except UsageError as error:
            return dict(status='failed', reason=str(error))
        return dict(status=self.earlier.status) if here is None and self.earlier else here

    def write_outcome(self, status: str, reason: str = '', trained_on: str = '') -> None:
        """Notes how it ended, and on which hardware."""
        outcome = dict(status=status, reason=reason, trained_on=trained_on)
        write_atomically(self._outcome_path, json.dumps(outcome))

    def forget_outcome(self) -> None:
        """Makes a run that has ended one to be trained; nothing else of it is lost."""
        if osp.exists(self._outcome_path):
            os.remove(self._outcome_path)

    def progress(self, metric: str) -> Progress:
        """What its files say, or an earlier report where they are not there."""
        if self.earlier and not osp.exists(self._outcome_path):
            return self.earlier
        try:
            evaluations = {int(k): v for k, v in (read_json(osp.join(self.folder, 'evaluations.json')) or {}).items()}
        except UsageError as error:  # one run's file does not spoil the report of all
            return Progress('failed', 0, None, {}, {}, str(error))
        curve = {step: numbers[metric] for step, numbers in evaluations.items() if metric in numbers}
        losses = dict(read_losses(self.folder))
        iteration = max([*evaluations, *losses, 0])
        outcome = self.outcome()
        if outcome is None:
            status = 'unfinished' if iteration else 'not started'
            return Progress(status, iteration, None, curve, losses)
        value = curve.get(max(evaluations, default=0)) if outcome['status'] == 'finished' else None
        if outcome['status'] == 'finished' and value is None:
            return Progress('failed', iteration, None, curve, losses, f'the last evaluation did not give {metric}')
        trained_on = outcome.get('trained_on', '')
        return Progress(outcome['status'], iteration, value, curve, losses, outcome['reason'], trained_on)


def take_earlier(plan: Plan, runs: Sequence[Run], paths: Sequence[str]) -> list[Run]:
    """Takes the finished runs of earlier reports, of other machines for example, so that they are not trained again.

    Args:
        plan (Plan): The plan.
        runs (Sequence[Run]): Its runs, each behind the one that it starts from.
        paths (Sequence[str]): Files ``results.json``. Their runs count by settings and seed, whatever their names.

    Returns:
        list[Run]: The runs, some with what is known of them. A run from which another is still to start is not taken:
            its weights are not in the report.

    Raises:
        FileNotFoundError: If a file is not there.
        UsageError: If one is no report, or reports another metric.
    """
    known = {}
    for path in paths:
        require_file(path, 'earlier report')
        try:
            report = read_json(path)
            metric = report['metric']
            for entry in report['runs']:
                if entry['status'] == 'finished':
                    known[entry.pop('settings'), entry['seed']] = _read_progress(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f'{path} is no results.json of this version of the report: {error!r}') from error
        if metric != plan.metric:
            raise UsageError(f'{path} reports {metric}, not {plan.metric}, the metric of {plan.path}')
    settings = plan.digests if known else {}
    taken: list[Run] = []
    needed = set()
    for run in reversed(runs):
        key = run.variant.name, run.seed
        found = known.get((settings.get(run.variant.name), run.seed))
        run = replace(run, earlier=None if key in needed else found)
        if run.outcome() is None:
            needed.add((run.variant.start, run.seed))
        taken.append(run)
    return taken[::-1]


def _read_progress(entry: dict) -> Progress:
    numbers = {name: {int(step): value for step, value in entry[name].items()} for name in ('curve', 'losses')}
    return Progress(**{name: entry[name] for name in Progress._fields} | numbers)
