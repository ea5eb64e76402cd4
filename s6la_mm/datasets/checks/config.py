"""The data sets of a config, walked through: images, annotations, labels, and files that two splits share."""

from __future__ import annotations

import errno
import functools
import os
import os.path as osp
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import track_iter_progress

from ...common.cli import explain
from ...common.configs import innermost_dataset
from ...common.errors import UsageError
from ...engine.hooks.label_check import unknown_labels
from ..shapes import ShapesDataset
from .coco import CocoFile
from .findings import Finding, Report
from .image_files import ImageFile, content_hash, look_at_image

_NO_PIPELINE = dict(pipeline=[], lazy_init=False)


def check_config_data(
    cfg: Config, splits: Iterable[str] = ('train', 'val', 'test'), workers: int = 0, decode: bool = False
) -> Report:
    """Checks the data sets of a config.

    Args:
        cfg (Config): With ``train_dataloader`` and its like; the model is not built.
        splits (Iterable[str]): Which of train, val and test. A test set that is the validation set is looked at once.
        workers (int): Threads that look at files. Defaults to 0, one for each core.
        decode (bool): Decode all images, not only their headers. Defaults to False.

    Returns:
        Report: The findings.

    Raises:
        UsageError: If there is no such data set in the config.

    Example:
        >>> cfg = Config.fromfile('configs/upernet/upernet_s6la-r18_camvid.py')
        >>> check_config_data(cfg, ['val']).has_errors  # there is no data/camvid
        True
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    start = time.time()
    report = Report()
    files: dict[str, list[ImageFile]] = defaultdict(list)
    seen: list[tuple] = []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in _datasets(loader['dataset']) if loader is not None else ():
            key = tuple(str(dataset.get(name)) for name in ('type', 'data_root', 'ann_file', 'data_prefix', 'indices'))
            if split == 'test' and key in seen:
                continue
            seen.append(key)
            found, looked_at = _check_dataset(dataset, split, workers or os.cpu_count() or 1, decode)
            report.findings += [_with_advice(finding, cfg) for finding in found]
            files[split] += looked_at
    report.images = sum(len(group) for group in files.values())
    if not seen:
        raise UsageError(f'the config has no data set for {", ".join(splits)}: it needs train_dataloader and its like')
    for split in ('val', 'test'):
        report.findings += _leakage(files['train'], files[split], split)
    report.findings = list(dict.fromkeys(report.findings))  # a file that is listed twice is missing once
    report.seconds = time.time() - start
    return report


def _datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The data sets under the wrappers: RepeatDataset, MultiImageMixDataset, ConcatDataset."""
    dataset = innermost_dataset(dataset)
    if 'datasets' not in dataset:
        yield dataset
    for part in dataset.get('datasets', ()):
        yield from _datasets(part)


def _check_dataset(
    dataset: ConfigDict, split: str, workers: int, decode: bool
) -> tuple[list[Finding], list[ImageFile]]:
    with DATASETS.switch_scope_and_registry(None) as registry:  # of the default scope
        kind = registry.get(dataset['type'])
    if kind is None:
        raise UsageError(f'{dataset["type"]} is no registered data set: check custom_imports and default_scope')
    names = {base.__name__ for base in kind.__mro__} if isinstance(kind, type) else {dataset['type']}
    if kind is ShapesDataset:
        DATASETS.build(dataset)  # which generates it at first use
    if 'CocoDataset' in names:
        return _check_coco(kind, dataset, split, workers, decode)
    built = _build(dataset, split)
    if isinstance(built, Finding):
        return [built], []
    entries = [built.get_data_info(index) for index in range(len(built))]
    if all('seg_map_path' in entry for entry in entries) and entries:
        return _check_segmentation(built, entries, dataset, split, workers, decode)
    paths = [entry['img_path'] for entry in entries if 'img_path' in entry]
    found, files = _look_at_all(paths, split, workers, decode)
    return [Finding('unchecked', split, type(built).__name__), *found], files


def _with_advice(finding: Finding, cfg: Config) -> Finding:
    """Adds to a missing file which variable or key of the config names it."""
    if finding.kind != 'missing-file':
        return finding
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), finding.where)
    return replace(finding, detail=explain(error, cfg) or '')


def _build(dataset: ConfigDict, split: str) -> Any:
    cfg = ConfigDict(dataset, **_NO_PIPELINE)
    cfg.setdefault('test_mode', True)
    try:
        built = DATASETS.build(cfg)
        built.full_init()
        return built
    except FileNotFoundError as error:
        return Finding('missing-file', split, str(error.filename or error))


def _join(root: str | None, path: str) -> str:
    return path if osp.isabs(path) or not root else osp.join(root, path)


def _check_coco(
    kind: Any, dataset: ConfigDict, split: str, workers: int, decode: bool
) -> tuple[list[Finding], list[ImageFile]]:
    root = dataset.get('data_root')
    path = _join(root, dataset['ann_file'])
    try:
        coco = CocoFile(path)
    except FileNotFoundError:
        return [Finding('missing-file', split, path)], []
    except ValueError as error:
        return [Finding('broken-file', split, path, str(error))], []
    classes = (dataset.get('metainfo') or {}).get('classes') or kind.METAINFO.get('classes')
    classes = [classes] if isinstance(classes, str) else classes
    loads = [
        t for t in dataset.get('pipeline', ()) if str(t['type']).endswith('LoadAnnotations') and t.get('with_mask')
    ]
    found = list(coco.check(split, classes, all(load.get('poly2mask', True) for load in loads)))
    folder = _join(root, (dataset.get('data_prefix') or {}).get('img', ''))
    paths = [osp.join(folder, image['file_name']) for image in coco.images]
    problems, files = _look_at_all(paths, split, workers, decode)
    for image, file in zip(coco.images, files):
        expected = (image['width'], image['height'])
        if file.size is not None and file.size != expected:
            detail = f'{file.size[0]} x {file.size[1]}, the entry says {expected[0]} x {expected[1]}'
            problems.append(Finding('size-mismatch', split, file.path, detail))
    return found + problems, files


def _check_segmentation(
    built: Any, entries: list[dict], dataset: ConfigDict, split: str, workers: int, decode: bool
) -> tuple[list[Finding], list[ImageFile]]:
    found, files = _look_at_all([entry['img_path'] for entry in entries], split, workers, decode)
    from mmseg.datasets.transforms import LoadAnnotations

    load = LoadAnnotations(backend_args=dataset.get('backend_args'))
    num_classes = len(built.metainfo['classes'])

    def check(number: int) -> list[Finding]:
        entry, image = entries[number], files[number]
        path = entry['seg_map_path']
        if not osp.isfile(path):
            return [Finding('missing-label-map', split, path)]
        try:
            labels = load({**entry, 'seg_fields': []})['gt_seg_map']
        except Exception as error:  # of whatever library decodes it
            return [Finding('unreadable-label-map', split, path, str(error))]
        problems = []
        size = labels.shape[1::-1]
        if image.size is not None and size != image.size:
            detail = f'{size[0]} x {size[1]}, the image has {image.size[0]} x {image.size[1]}'
            problems.append(Finding('label-size-mismatch', split, path, detail))
        if labels.ndim != 2:
            detail = f'{labels.shape[2]} channels: colours instead of labels'
            return [*problems, Finding('label-out-of-range', split, path, detail)]
        unknown = unknown_labels(labels, num_classes, built.ignore_index)
        if unknown:
            detail = f'labels {list(unknown)[:5]}, there are {num_classes} classes and {built.ignore_index} to ignore'
            problems.append(Finding('label-out-of-range', split, path, detail))
        return problems

    return found + [f for problems in _in_parallel(check, range(len(entries)), workers) for f in problems], files


def _look_at_all(paths: list[str], split: str, workers: int, decode: bool) -> tuple[list[Finding], list[ImageFile]]:
    files = _in_parallel(lambda path: look_at_image(path, decode), paths, workers)
    return [Finding(f.problem, split, f.path, f.detail) for f in files if f.problem], files


def _in_parallel(function: Callable, items: Iterable, workers: int) -> list:
    """Results in the order of the items, with a bar where somebody looks."""
    items = list(items)
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(function, items)
        if items and sys.stderr.isatty():
            results = track_iter_progress((results, len(items)), file=sys.stderr)
        return list(results)


def _leakage(train: list[ImageFile], held_out: list[ImageFile], split: str) -> Iterator[Finding]:
    """Files of the training that are in another split: by path, and by content where the length is the same."""
    paths = {osp.realpath(file.path) for file in train}
    by_length = defaultdict(list)
    for file in train:
        if file.num_bytes:
            by_length[file.num_bytes].append(file.path)
    digest = functools.cache(content_hash)
    for file in held_out:
        if osp.realpath(file.path) in paths:
            yield Finding('leakage', split, file.path, 'the same file is in train')
            continue
        twins = [path for path in by_length.get(file.num_bytes, ()) if digest(path) == digest(file.path)]
        if twins:
            yield Finding('leakage', split, file.path, f'the content of {twins[0]} in train')
