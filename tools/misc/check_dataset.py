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

from mmcv.transforms import LoadAnnotations
from mmengine.config import Config, ConfigDict
from mmengine.fileio import get_local_path
from mmengine.registry import DATASETS
from mmengine.utils import track_iter_progress

import s6la_mm  # noqa: F401  (registers the data sets)
from s6la_mm.common.cli import add_cfg_options, clear_errors, explain, load_config
from s6la_mm.common.configs import datasets_of, enter_scope
from s6la_mm.common.errors import UsageError
from s6la_mm.common.files import write_atomically
from s6la_mm.config_types import find_type
from s6la_mm.datasets.checks.classes import ClassCounts, class_table
from s6la_mm.datasets.checks.coco import CocoFile, check_evaluator, read_by_evaluation
from s6la_mm.datasets.checks.entries import check_classes, check_objects, check_samples, check_xml, name_of
from s6la_mm.datasets.checks.findings import KINDS, Finding, in_words
from s6la_mm.datasets.checks.image_files import ImageCheck, ImageFile, ImageLoader, name_beside, paths_of
from s6la_mm.datasets.checks.label_maps import LabelMapCheck
from s6la_mm.datasets.checks.loading import LoadedDataset
from s6la_mm.datasets.checks.pictures import save_pictures

SPLITS = ('train', 'val', 'test')


@dataclass
class Report:
    """All findings of a config's data sets, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    classes: list[ClassCounts] = field(default_factory=list)

    @property
    def has_errors(self) -> bool:
        """Whether one of the findings is an error."""
        return any(finding.level == 'error' for finding in self.findings)


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of mmdet, mmseg or mmpretrain')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, default=SPLITS, help='default: all')
    parser.add_argument('--decode', action='store_true', help='decode every image, not only its header')
    parser.add_argument('--workers', type=int, default=0, help='threads (default: one for each core)')
    parser.add_argument('--examples', type=int, default=3, help='how many of each kind are named (default: 3)')
    parser.add_argument('--show-dir', help='draw some samples there, as they are and as the network gets them')
    parser.add_argument('--json', metavar='FILE', help='write all findings there')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.workers < 0 or args.examples < 0:
        parser.error('--workers and --examples must not be negative')
    return args


def check_config_data(cfg: Config, splits: Iterable[str] = SPLITS, workers: int = 0, decode: bool = False) -> Report:
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
        counts = ClassCounts(split)
        for dataset in datasets_of(loader['dataset']) if loader is not None else ():
            key = tuple(str(dataset.get(name)) for name in ('type', 'data_root', 'ann_file', 'data_prefix', 'indices'))
            if split == 'test' and key in seen:
                continue
            seen.append(key)
            check = DatasetCheck(dataset, split, counts, workers or os.cpu_count() or 1)
            check.run(cfg.get(f'{split}_evaluator'), decode)
            report.findings += [with_advice(finding, cfg) for finding in check.findings]
            report.images += len(check.files) or len(check.loaded.entries)
            files[split] += check.files
        report.findings += counts.findings()
        report.classes.append(counts)
    if not seen:
        raise UsageError(f'the config has no data set for {", ".join(splits)}: it needs train_dataloader and its like')
    for split in ('val', 'test'):
        report.findings += leakage(files['train'], files[split], split)
    report.findings = list(dict.fromkeys(report.findings))  # a file that is listed twice is missing once
    report.seconds = time.time() - start
    return report


def with_advice(finding: Finding, cfg: Config) -> Finding:
    """Adds to a missing file which variable or key of the config names it."""
    if finding.kind != 'missing-file':
        return finding
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), finding.where)
    return replace(finding, detail=explain(error, cfg) or '')


class DatasetCheck:
    """The look at a data set without wrappers.

    Args:
        dataset (ConfigDict): Its entry in the config.
        split (str): Name of the split.
        counts (ClassCounts): Gets what there is of each class.
        workers (int): Threads that look at files.

    Raises:
        UsageError: If its type is not registered.
    """

    def __init__(self, dataset: ConfigDict, split: str, counts: ClassCounts, workers: int) -> None:
        if find_type(dataset['type'], DATASETS) is None:
            raise UsageError(f'{dataset["type"]} is no registered data set: check custom_imports and default_scope')
        self.split, self.counts, self.workers = split, counts, workers
        self.metainfo = dataset.get('metainfo') or {}
        self.loaded = LoadedDataset(dataset, split)
        self.findings: list[Finding] = []
        self.files: list[ImageFile] = []

    def run(self, evaluator: Any, decode: bool) -> None:
        """Looks at everything.

        Args:
            evaluator (Any): The evaluation of the split, as the config has it.
            decode (bool): Decode all images.
        """
        loaded = self.loaded
        self.findings += loaded.findings
        if loaded.built is None:
            return
        self.findings += check_classes(loaded, self.metainfo)
        loads = [t for t in loaded.transforms if getattr(t, 'with_mask', False) and isinstance(t, LoadAnnotations)]
        coco = self.check_coco(loads, evaluator) if loaded.is_a('CocoDataset') else None
        self.findings += loaded.failed_entries(coco.faulty if coco else ())
        self.findings += check_samples(loaded)
        self.findings += check_objects(loaded, bool(loads), coco is not None)
        self.findings += check_xml(loaded)
        self.counts.add_classes(loaded.classes)
        self.counts.annotated |= loaded.loads_annotations and any('instances' in entry for entry in loaded.entries)
        maps = LabelMapCheck(loaded)  # those of panoptic data sets have all pixels, of things as well
        entries = [entry for entry in loaded.entries if not ('segments_info' in entry and maps.applies(entry))]
        for entry, detail in self.counts.add_entries(loaded.classes, entries):
            self.findings.append(Finding('label-out-of-range', self.split, name_of(entry), detail))
        self.check_images(decode)
        self.check_label_maps(maps)
        known = self.files or any('img' in entry for entry in loaded.entries[:1])
        if not known and (loaded.entries or not hasattr(loaded.built, 'get_data_info')):
            self.findings.append(Finding('unchecked', self.split, loaded.type))

    def check_coco(self, loads: list, evaluator: Any) -> CocoFile | None:
        """Checks the entries of a file in COCO's layout; returns it if it can be read."""
        loaded, path = self.loaded, self.loaded.built.ann_file
        try:
            with get_local_path(path, backend_args=loaded.backend_args) as local_path:
                coco = CocoFile(local_path)
        except FileNotFoundError:
            self.findings = [Finding('missing-file', self.split, path)]
            return None
        except ValueError as error:
            self.findings = [Finding('broken-file', self.split, path, str(error))]
            return None
        crowds, with_mask = False, False
        if self.split != 'train':
            crowds, with_mask = read_by_evaluation(evaluator, loaded.is_a('LVISV05Dataset'))
            self.findings += check_evaluator(evaluator, path, loaded.entries, self.split)
        found = list(
            coco.check(
                self.split,
                loaded.classes,
                ('iscrowd',) if crowds else (),
                bool(loads) or with_mask,
                all(getattr(load, 'poly2mask', True) for load in loads),
                {raw['raw_img_info']['img_id'] for raw, _ in loaded.failures} if loaded.is_there else None,
            )
        )
        found += coco.check_order(self.split, loaded.classes, getattr(loaded.built, 'cat2label', {}))
        if any(finding.level == 'error' for finding in found):  # that is what the loader stops at
            self.findings = [finding for finding in self.findings if finding.kind != 'cannot-load']
        self.findings += found
        return coco

    def check_images(self, decode: bool) -> None:
        """Looks at the image files, and compares their sizes with those of the entries."""
        loaded = self.loaded
        check = ImageCheck(ImageLoader(loaded.transforms, loaded.backend_args), decode)
        jobs = [(entry, path) for entry in loaded.entries for path in paths_of(entry)]
        self.files = in_parallel(lambda job: check(*job), jobs, self.workers)
        names: dict[str, dict[str, str]] = {}
        for (entry, path), file in zip(jobs, self.files):
            if file.problem:
                beside = name_beside(path, names) if file.problem == 'missing-image' else ''
                detail = f'there is {beside}' if beside else file.detail
                self.findings.append(Finding(file.problem, self.split, path, detail))
            expected = (entry.get('width'), entry.get('height'))
            if file.size is not None and None not in expected and file.size != expected:
                detail = f'{file.size[0]} x {file.size[1]}, the entry says {expected[0]} x {expected[1]}'
                self.findings.append(Finding('size-mismatch', self.split, path, detail))

    def check_label_maps(self, check: LabelMapCheck) -> None:
        """Looks at the label maps that the pipeline loads, and counts their pixels."""
        files = {file.path: file for file in self.files}
        jobs = [
            (entry, files.get(name_of(entry)) or ImageFile(name_of(entry)))
            for entry in self.loaded.entries
            if check.applies(entry)
        ]
        self.counts.annotated |= bool(jobs)
        for problems, pixels in in_parallel(lambda job: check(*job), jobs, self.workers):
            self.findings += problems
            if pixels is not None:
                check.count(pixels, self.counts)


def in_parallel(function: Callable, items: Sequence, workers: int) -> list:
    """Results in the order of the items, with a bar where somebody looks."""
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(function, items)
        if items and sys.stderr.isatty():
            results = track_iter_progress((results, len(items)), file=sys.stderr)
        return list(results)


def content_hash(path: str) -> str:
    """Digest of a file's bytes; the name of one that is elsewhere, which is not fetched for this."""
    if not osp.isfile(path):
        return path
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
    lines += class_table(report.classes)
    return '\n'.join([*lines, f'{report.images} images in {report.seconds:.1f} s ({speed}): {summary}'])


def show(cfg: Config, splits: Iterable[str], folder: str) -> None:
    """Draws samples, and says which could not be drawn."""
    for split in splits:
        if cfg.get(f'{split}_dataloader') is None:
            continue
        try:
            files, failures = save_pictures(cfg, split, folder)
        except Exception as error:  # of whatever data set: the findings above say more
            print(f'{split}: no pictures: {in_words(error)}')
            continue
        print(f'{split}: {len(files)} pictures in {folder}', *failures, sep='\n')


def main() -> None:
    """Checks and reports."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
    with clear_errors(cfg):
        report = check_config_data(cfg, args.splits, args.workers, args.decode)
    print(table(report, args.examples))
    if args.show_dir:
        show(cfg, args.splits, args.show_dir)
    if args.json:
        try:
            findings = [{'level': finding.level, **asdict(finding)} for finding in report.findings]
            classes = {
                counts.split: {n: dict(images=counts.images[n], amount=counts.amounts[n]) for n in counts.classes}
                for counts in report.classes
            }
            seconds = round(report.seconds, 3)
            content = dict(images=report.images, seconds=seconds, classes=classes, findings=findings)
            write_atomically(args.json, json.dumps(content, indent=1, ensure_ascii=False))
        except OSError as error:
            raise SystemExit(f'error: {args.json} cannot be written: {error.strerror}') from error
    raise SystemExit(int(report.has_errors))


if __name__ == '__main__':
    main()
