"""A data set as the training loads it: its entries, what its filter leaves out, and where its loader stops."""

from __future__ import annotations

import os.path as osp
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ...common.configs import metainfo_of
from ...config_types import type_name
from .findings import Finding, in_words


class LoadedDataset:
    """A data set of a config, built as the runner builds it.

    Whatever it raises becomes a finding; an entry that it cannot parse is left out, and the others are loaded.

    Args:
        cfg (ConfigDict): The entry of the data set itself, without wrappers.
        split (str): Name of the split in findings.
    """

    def __init__(self, cfg: ConfigDict, split: str) -> None:
        self.split = split
        self.type = type_name(cfg)
        self.built: Any = None
        self.entries: list[dict] = []  # what the training gets
        self.left_out: list[dict] = []  # by filter_cfg
        self.failures: list[tuple[dict, Exception]] = []  # entries of the annotation file at which the loader stops
        self.findings: list[Finding] = []
        try:
            try:
                self._load(cfg)
            except ImportError as error:
                self.findings.append(Finding('missing-package', split, self.type, in_words(error)))
                with _stand_ins():
                    self._load(cfg)
        except Exception as error:  # of whatever class the data set is
            self.findings.append(self._finding_of(error, cfg))

    @property
    def is_there(self) -> bool:
        """Whether it was loaded, if not all of it."""
        return not any(finding.level == 'error' for finding in self.findings)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes; none if there is no list of them."""
        classes = metainfo_of(self.built).get('classes')
        return tuple(classes) if isinstance(classes, (list, tuple)) else ()

    @property
    def transforms(self) -> list:
        """The transforms of its pipeline."""
        return list(flat(getattr(getattr(self.built, 'pipeline', None), 'transforms', ())))

    @property
    def backend_args(self) -> dict | None:
        """Where its files are, if not on a disk."""
        return getattr(self.built, 'backend_args', None)

    @property
    def loads_annotations(self) -> bool:
        """Whether its pipeline does; a pipeline that does nothing is one that is not known."""
        return not self.transforms or any(isinstance(t, LoadAnnotations) for t in self.transforms)

    def is_a(self, name: str) -> bool:
        """Whether its class, or one that it derives from, has this name."""
        return name in {base.__name__ for base in type(self.built).__mro__}

    def failed_entries(self, known: Iterable[object] = ()) -> Iterator[Finding]:
        """One finding for each entry that the loader stops at, but those of images whose defects are known.

        Args:
            known (Iterable): Image ids.
        """
        for raw, error in self.failures:
            if isinstance(error, FileNotFoundError):
                yield Finding('missing-file', self.split, str(error.filename or error))
            elif raw.get('raw_img_info', {}).get('img_id') not in known:
                yield Finding('cannot-load', self.split, _name_of(raw), in_words(error))

    def _load(self, cfg: ConfigDict) -> None:
        self.failures.clear()
        self.built = built = _build(cfg)
        if not isinstance(built, BaseDataset):
            if hasattr(built, 'full_init'):
                built.full_init()
            numbers = range(len(built)) if hasattr(built, 'get_data_info') else ()
            self.entries = [built.get_data_info(number) for number in numbers]
            return
        built.serialize_data = False  # an empty data set cannot be serialised
        parsed = self._parse_one_by_one(built)
        try:
            built.full_init()
        except Exception:
            self.entries = [entry for entry in parsed if entry]
            raise
        if type(built).get_data_info is BaseDataset.get_data_info:
            self.entries = built.data_list  # it would copy each
        else:
            self.entries = [built.get_data_info(number) for number in range(len(built))]

    def _parse_one_by_one(self, built: BaseDataset) -> list:
        """Lets the loader go on behind an entry that it cannot parse; returns the list that will hold the others."""
        parse, filter_data, parsed = built.parse_data_info, built.filter_data, []

        def parse_data_info(raw: dict) -> Any:
            try:
                parsed.append(parse(raw))
            except Exception as error:
                self.failures.append((raw, error))
                parsed.append(_parse_what_can_be(parse, raw))
            return parsed[-1]

        def keep_and_filter() -> list:
            built.data_list = before = [entry for entry in built.data_list if entry]
            kept = filter_data()
            numbers = {id(entry) for entry in kept}
            self.left_out = [entry for entry in before if id(entry) not in numbers]
            return kept

        built.parse_data_info, built.filter_data = parse_data_info, keep_and_filter
        return parsed

    def _finding_of(self, error: Exception, cfg: ConfigDict) -> Finding:
        if isinstance(error, FileNotFoundError):
            return Finding('missing-file', self.split, str(error.filename or error))
        # mmseg asserts in one go that the files are there, and does not say which is not.
        prefixes = cfg.get('data_prefix') or {}
        paths = [cfg.get('ann_file'), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]
        paths = [osp.join(cfg.get('data_root') or '', path) for path in paths if isinstance(path, str) and path]
        missing = [path for path in paths if not osp.exists(path)]
        if missing and not cfg.get('backend_args'):
            return Finding('missing-file', self.split, missing[0])
        kind = 'cannot-build' if self.built is None else 'cannot-load'
        return Finding(kind, self.split, getattr(self.built, 'ann_file', None) or self.type, in_words(error))


def _build(cfg: ConfigDict) -> Any:
    """Builds without reading, if the type can, so that errors of the config and of the files are told apart."""
    try:
        return DATASETS.build(ConfigDict(cfg, lazy_init=True))
    except TypeError as error:
        if 'lazy_init' not in str(error):
            raise
        return DATASETS.build(cfg)


def _parse_what_can_be(parse: Callable[[dict], Any], raw: dict) -> Any:
    """An entry without those of its annotations that cannot be parsed; an empty one if it is the rest that cannot."""
    annotations = []
    for annotation in raw.get('raw_ann_info', ()):
        with suppress(Exception):
            parse({**raw, 'raw_ann_info': [annotation]})
            annotations.append(annotation)
    with suppress(Exception):
        return parse({**raw, 'raw_ann_info': annotations}) if 'raw_ann_info' in raw else {}
    return {}


def flat(transforms: Any) -> Iterator[Any]:
    """The transforms of a pipeline, also those inside of others."""
    for transform in transforms:
        if isinstance(transform, (list, tuple)):
            yield from flat(transform)
            continue
        yield transform
        inner = getattr(transform, 'transforms', ())
        yield from flat(getattr(inner, 'transforms', inner))


def _name_of(raw: dict) -> str:
    """What names an entry of an annotation file to its owner."""
    raw = raw.get('raw_img_info', raw)
    names = ('xml_path', 'file_name', 'coco_url', 'img_path', 'filename', 'img_id', 'id', 'ID')
    return next((str(raw[name]) for name in names if raw.get(name) is not None), str(raw)[:80])


@contextmanager
def _stand_ins() -> Iterator[None]:
    """What mmdet takes from the packages of LVIS and of panoptic segmentation to read their files."""
    from mmdet.datasets.api_wrappers import COCO  # has the interface of LVIS

    contents: dict[str, dict] = {
        'lvis': dict(LVIS=COCO),
        'panopticapi.utils': dict(rgb2id=lambda colours: colours.astype(np.int32) @ np.int32([1, 256, 65536])),
    }
    modules = {name: ModuleType(name) for name in (*contents, 'panopticapi')}
    contents['panopticapi'] = dict(utils=modules['panopticapi.utils'])
    for name, content in contents.items():
        vars(modules[name]).update(content)
    added = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
