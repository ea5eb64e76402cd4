"""Check the data sets of a config: files, annotations, labels, leakage. Ends with status 1 if there are errors."""

from __future__ import annotations

import argparse
import errno
import functools
import hashlib
import json
import os
import os.path as osp
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from mmengine.utils import track_iter_progress

import s6la_mm  # noqa: F401  (registers the data sets)
from s6la_mm.common.cli import add_cfg_options, clear_errors, explain, load_config
from s6la_mm.common.configs import datasets_of, enter_scope
from s6la_mm.common.errors import UsageError
from s6la_mm.common.files import write_atomically
from s6la_mm.config_types import find_type, type_name
from s6la_mm.datasets import ShapesDataset
from s6la_mm.datasets.checks.coco import CocoFile
from s6la_mm.datasets.checks.findings import KINDS, Finding
from s6la_mm.datasets.checks.image_files import ImageFile, look_at_image
from s6la_mm.engine.hooks.label_check import unknown_labels

NO_PIPELINE = dict(pipeline=[], lazy_init=False)


@dataclass
class Report:
    """All findings of a config's data sets, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0

    @property
    def has_errors(self) -> bool:
        """Whether one of the findings is an error."""
        return any(finding.level == 'error' for finding in self.findings)


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of mmdet, mmseg or mmpretrain')
    splits = ('train', 'val', 'test')
    parser.add_argument('--splits', nargs='+', choices=splits, default=splits, help='default: all')
    parser.add_argument('--decode', action='store_true', help='decode every image, not only its header')
    parser.add_argument('--workers', type=int, default=0, help='threads (default: one for each core)')
    parser.add_argument('--examples', type=int, default=3, help='how many of each kind are named (default: 3)')
    parser.add_argument('--json', metavar='FILE', help='write all findings there')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.workers < 0 or args.examples < 0:
        parser.error('--workers and --examples must not be negative')
    return args


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
    """
    enter_scope(cfg)
    start = time.time()
    report = Report()
    files: dict[str, list[ImageFile]] = defaultdict(list)
    seen: list[tuple] = []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in datasets_of(loader['dataset']) if loader is not None else ():
            key = tuple(str(dataset.get(name)) for name in ('type', 'data_root', 'ann_file', 'data_prefix', 'indices'))
            if split == 'test' and key in seen:
                continue
            seen.append(key)
            found, looked_at = check_dataset(dataset, split, workers or os.cpu_count() or 1, decode)
            report.findings += [with_advice(finding, cfg) for finding in found]
            files[split] += looked_at
    report.images = sum(len(group) for group in files.values())
    if not seen:
        raise UsageError(f'the config has no data set for {", ".join(splits)}: it needs train_dataloader and its like')
    for split in ('val', 'test'):
        report.findings += leakage(files['train'], files[split], split)
    report.findings = list(dict.fromkeys(report.findings))  # a file that is listed twice is missing once
    report.seconds = time.time() - start
    return report


def check_dataset(dataset: ConfigDict, split: str, workers: int, decode: bool) -> tuple[list[Finding], list[ImageFile]]:
    """What is wrong with a data set, and its image files."""
    kind = find_type(dataset['type'], DATASETS)
    if kind is None:
        raise UsageError(f'{dataset["type"]} is no registered data set: check custom_imports and default_scope')
    names = {base.__name__ for base in kind.__mro__} if isinstance(kind, type) else {type_name(dataset)}
    if kind is ShapesDataset:
        DATASETS.build(dataset)  # which generates it at first use
    if 'CocoDataset' in names:
        return check_coco(kind, dataset, split, workers, decode)
    built = build_dataset(dataset, split)
    if isinstance(built, Finding):
        return [built], []
    entries = [built.get_data_info(index) for index in range(len(built))]
    if all('seg_map_path' in entry for entry in entries) and entries:
        return check_segmentation(built, entries, dataset, split, workers, decode)
    paths = [entry['img_path'] for entry in entries if 'img_path' in entry]
    found, files = look_at_all(paths, split, workers, decode)
    return [Finding('unchecked', split, type(built).__name__), *found], files


def with_advice(finding: Finding, cfg: Config) -> Finding:
    """Adds to a missing file which variable or key of the config names it."""
    if finding.kind != 'missing-file':
        return finding
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), finding.where)
    return replace(finding, detail=explain(error, cfg) or '')


def build_dataset(dataset: ConfigDict, split: str) -> Any:
    """The data set without its pipeline, or the finding that it is not there."""
    cfg = ConfigDict(dataset, **NO_PIPELINE)
    cfg.setdefault('test_mode', True)
    try:
        built = DATASETS.build(cfg)
        built.full_init()
        return built
    except FileNotFoundError as error:
        return Finding('missing-file', split, str(error.filename or error))


def check_coco(
    kind: Any, dataset: ConfigDict, split: str, workers: int, decode: bool
) -> tuple[list[Finding], list[ImageFile]]:
    """Checks entries and images of a data set in COCO's layout."""
    root = dataset.get('data_root') or ''
    path = osp.join(root, dataset['ann_file'])
    try:
        coco = CocoFile(path)
    except FileNotFoundError:
        return [Finding('missing-file', split, path)], []
    except ValueError as error:
        return [Finding('broken-file', split, path, str(error))], []
    classes = (dataset.get('metainfo') or {}).get('classes') or kind.METAINFO.get('classes')
    classes = [classes] if isinstance(classes, str) else classes
    loads = [t for t in dataset.get('pipeline', ()) if type_name(t).endswith('LoadAnnotations') and t.get('with_mask')]
    found = list(coco.check(split, classes, all(load.get('poly2mask', True) for load in loads)))
    folder = osp.join(root, (dataset.get('data_prefix') or {}).get('img', ''))
    paths = [osp.join(folder, image['file_name']) for image in coco.images]
    problems, files = look_at_all(paths, split, workers, decode)
    for image, file in zip(coco.images, files):
        expected = (image['width'], image['height'])
        if file.size is not None and file.size != expected:
            detail = f'{file.size[0]} x {file.size[1]}, the entry says {expected[0]} x {expected[1]}'
            problems.append(Finding('size-mismatch', split, file.path, detail))
    return found + problems, files


def check_segmentation(
    built: Any, entries: list[dict], dataset: ConfigDict, split: str, workers: int, decode: bool
) -> tuple[list[Finding], list[ImageFile]]:
    """Checks images and label maps of a data set for segmentation."""
    from mmseg.datasets.transforms import LoadAnnotations

    found, files = look_at_all([entry['img_path'] for entry in entries], split, workers, decode)
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

    return found + [f for problems in in_parallel(check, range(len(entries)), workers) for f in problems], files


def look_at_all(paths: list[str], split: str, workers: int, decode: bool) -> tuple[list[Finding], list[ImageFile]]:
    """The findings of image files, and the files."""
    files = in_parallel(lambda path: look_at_image(path, decode), paths, workers)
    return [Finding(f.problem, split, f.path, f.detail) for f in files if f.problem], files


def in_parallel(function: Callable, items: Sequence, workers: int) -> list:
    """Results in the order of the items, with a bar where somebody looks."""
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(function, items)
        if items and sys.stderr.isatty():
            results = track_iter_progress((results, len(items)), file=sys.stderr)
        return list(results)


def content_hash(path: str) -> str:
    """Digest of a file's bytes."""
    with open(path, 'rb') as file:
        return hashlib.md5(file.read()).hexdigest()  # file_digest came with Python 3.11


def leakage(train: list[ImageFile], held_out: list[ImageFile], split: str) -> Iterator[Finding]:
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


def table(report: Report, examples: int) -> str:
    """The kinds of findings with some examples of each, and what was looked at."""
    by_kind = defaultdict(list)
    for finding in report.findings:
        by_kind[finding.kind].append(finding)
    lines = []
    width = max(map(len, by_kind), default=0)
    for kind, (level, advice) in KINDS.items():  # errors come first there
        found = by_kind.get(kind, [])
        if not found:
            continue
        lines.append(f'{level:5}  {kind:{width}}  {len(found):>2}  {advice}')
        indent = ' ' * (width + 13)
        for finding in found[:examples]:
            detail = f': {finding.detail}' if finding.detail else ''
            lines.append(f'{indent}{finding.split}: {finding.where}{detail}')
        if len(found) > examples:
            lines.append(f'{indent}... and {len(found) - examples} more')
    errors = sum(finding.level == 'error' for finding in report.findings)
    speed = f'{report.images / report.seconds:.0f} images/s' if report.seconds else 'no time measured'
    summary = 'no errors' if not errors else f'{errors} error{"s" if errors > 1 else ""}'
    return '\n'.join([*lines, f'{report.images} images in {report.seconds:.1f} s ({speed}): {summary}'])


def main() -> None:
    """Checks and reports."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
    with clear_errors(cfg):
        report = check_config_data(cfg, args.splits, args.workers, args.decode)
    print(table(report, args.examples))
    if args.json:
        try:
            findings = [{'level': finding.level, **asdict(finding)} for finding in report.findings]
            content = dict(images=report.images, seconds=round(report.seconds, 3), findings=findings)
            write_atomically(args.json, json.dumps(content, indent=1, ensure_ascii=False))
        except OSError as error:
            raise SystemExit(f'error: {args.json} cannot be written: {error.strerror}') from error
    raise SystemExit(int(report.has_errors))


if __name__ == '__main__':
    main()
