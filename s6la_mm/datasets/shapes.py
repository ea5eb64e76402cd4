"""The default data set: small pictures of shapes with instance masks in COCO format, generated at first use.

Nothing is downloaded: :func:`generate_shapes` draws the set into a folder, and :class:`ShapesDataset` calls it
before it loads the annotations. The drawing itself is in ``shapes_render.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.datasets import CocoDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from pycocotools import mask as mask_utils

from .shapes_render import CLASSES, render_scene

# Raise it with every change of what is drawn or written, so that an older set is not taken for a new one.
VERSION = 1
SPLITS = ('train', 'val')
MIN_IMAGE_SIZE = 64
FIX = 'Set S6LA_SHAPES_ROOT (or data_root in the config) to another folder'


def _segmentation(mask: np.ndarray) -> tuple[list | dict, dict]:
    """The COCO segmentation of a mask, and its compressed RLE.

    A mask of one piece without a hole becomes a polygon along the edges of its pixels, if pycocotools turns
    that polygon into the same mask again; any other mask becomes an RLE.

    Args:
        mask (np.ndarray): (H, W) bool.

    Returns:
        tuple: ``[[x0, y0, x1, y1, ...]]`` or ``{'size': [H, W], 'counts': str}``, and the RLE with ``bytes`` counts.
    """
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    # findContours goes through the centres of border pixels. In the doubled mask these are a quarter of a
    # pixel off the edges of the real pixels, and rounding moves them onto the edges.
    doubled = np.kron(mask, np.ones((2, 2))).astype(np.uint8)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) == 1:
        points = np.round((contours[0][:, 0] + 0.5) / 2).astype(int)
        points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
        polygons = [points.ravel().tolist()]
        if mask_utils.merge(mask_utils.frPyObjects(polygons, *mask.shape)) == rle:
            return polygons, rle
    return {'size': list(rle['size']), 'counts': rle['counts'].decode('ascii')}, rle


def _write_split(folder: Path, split: str, count: int, image_size: int, seed: int) -> None:
    """Draw one split: ``folder/split/*.png`` and ``folder/annotations/split.json``."""
    (folder / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        # A generator for each image: image `index` does not depend on how many there are.
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        picture, objects = render_scene(rng, image_size)
        file_name = f'{index:06d}.png'
        # Not cv2.imwrite, which answers False instead of raising when a disk is full.
        (folder / split / file_name).write_bytes(cv2.imencode('.png', picture)[1].tobytes())
        images.append(dict(id=index + 1, file_name=file_name, width=image_size, height=image_size))
        for label, mask in objects:
            segmentation, rle = _segmentation(mask)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index + 1,
                    category_id=label + 1,
                    segmentation=segmentation,
                    area=float(mask_utils.area(rle)),
                    bbox=mask_utils.toBbox(rle).tolist(),
                    iscrowd=0,
                )
            )
    categories = [dict(id=label + 1, name=name, supercategory='shape') for label, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content), encoding='utf-8')


def _is_ready(root: Path, parameters: dict) -> bool:
    """Whether ``root`` holds the complete set of these parameters; False if there is nothing yet.

    Raises:
        ValueError: If ``root`` holds something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / 'meta.json').read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get('generator') != parameters['generator']:
        raise ValueError(f'{root} is not empty and holds no generated shapes data set. {FIX}.')
    different = [
        f'{key} is {found.get(key)!r} there, {parameters.get(key)!r} is asked for'
        for key in sorted({*found, *parameters})
        if found.get(key) != parameters.get(key)
    ]
    if different:
        raise ValueError(
            f'{root} holds a shapes data set of other parameters: {"; ".join(different)}. '
            f'{FIX}, or delete {root} to generate it anew.'
        )
    for split in SPLITS:
        pictures = len(list(root.glob(f'{split}/*.png')))
        if pictures != parameters[f'num_{split}'] or not (root / 'annotations' / f'{split}.json').is_file():
            raise ValueError(
                f'The shapes data set in {root} is damaged: {pictures} of {parameters[f"num_{split}"]} pictures '
                f'in {split}/, or no annotations/{split}.json. Delete {root} to generate it anew.'
            )
    return True


def generate_shapes(
    root: str | os.PathLike, *, num_train: int = 800, num_val: int = 100, image_size: int = 160, seed: int = 0
) -> Path:
    """Generate a small instance-segmentation data set in COCO layout, or reuse the one that is there.

    Writes ``train/*.png``, ``val/*.png``, ``annotations/{train,val}.json`` and ``meta.json`` (generator, version,
    all parameters). Masks are modal, as in COCO: what an object in front covers is not part of the one behind.
    The set appears in one step when it is complete: a process that is killed on the way leaves at most a hidden
    folder ``.<name>.tmp-*`` beside ``root``, which is never read and can be deleted; of two processes that start
    at once, the slower one discards its copy.

    Args:
        root (str | os.PathLike): Folder of the data set; made with its parents if it does not exist.
        num_train (int): Number of training images. Defaults to 800.
        num_val (int): Number of validation images. Defaults to 100.
        image_size (int): Side of the square images in pixels, at least 64. Defaults to 160.
        seed (int): Seed of the whole set. The same seed gives the same image ``i``, however many images there are.
            Defaults to 0.

    Returns:
        Path: ``root``.

    Raises:
        ValueError: If a parameter is out of range, or ``root`` holds another data set or other files.
        OSError: If ``root`` cannot be written.

    Example:
        >>> root = generate_shapes('data/shapes', num_train=8, num_val=2)
        >>> sorted(path.name for path in root.iterdir())
        ['annotations', 'meta.json', 'train', 'val']
    """
    parameters: dict[str, Any] = dict(num_train=num_train, num_val=num_val, image_size=image_size, seed=seed)
    for name, least in dict(num_train=1, num_val=1, image_size=MIN_IMAGE_SIZE, seed=0).items():
        if not isinstance(parameters[name], int) or parameters[name] < least:
            raise ValueError(f'{name} must be an integer of at least {least}, got {parameters[name]!r}')
    parameters = dict(generator='s6la_mm.datasets.generate_shapes', version=VERSION, **parameters)

    # A link is followed first, so that the finished folder is renamed within one file system.
    target = Path(root).resolve()
    copy = target.parent / f'.{target.name}.tmp-{uuid.uuid4().hex}'
    try:
        if _is_ready(target, parameters):
            return Path(root)
        print_log(f'Generating the shapes data set in {target}: {num_train} train + {num_val} val images', 'current')
        (copy / 'annotations').mkdir(parents=True)
        for split in SPLITS:
            _write_split(copy, split, parameters[f'num_{split}'], image_size, seed)
        (copy / 'meta.json').write_text(json.dumps(parameters, indent=1) + '\n', encoding='utf-8')
        try:
            # Fails if another process has put its set there meanwhile; an empty folder is replaced.
            os.rename(copy, target)
        except OSError:
            if not _is_ready(target, parameters):
                raise
    except OSError as error:
        reason = f'Cannot write the shapes data set to {target} ({error}). {FIX} that can be written.'
        raise OSError(error.errno, reason) from error
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return Path(root)


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The generated shapes data set; its first use draws it into ``data_root``.

    Args:
        *args: Positional arguments of :class:`mmdet.datasets.CocoDataset`.
        generator (dict, optional): Keyword arguments of :func:`generate_shapes` (counts, size, seed). All splits of one
            ``data_root`` need the same ones. Defaults to None: its defaults.
        **kwargs: Keyword arguments of :class:`mmdet.datasets.CocoDataset`; ``data_root`` must be set.

    Example:
        >>> dataset = ShapesDataset(data_root='data/shapes', ann_file='annotations/val.json', pipeline=[],
        ...                         data_prefix=dict(img='val/'), lazy_init=True)  # drawn by full_init()
        >>> dataset.metainfo['classes'][:3]
        ('circle', 'square', 'triangle')
    """

    METAINFO = dict(
        classes=CLASSES,
        palette=[(220, 20, 60), (30, 110, 230), (40, 160, 60), (245, 160, 0), (150, 60, 190), (0, 175, 185)],
    )

    def __init__(self, *args: Any, generator: dict | None = None, **kwargs: Any) -> None:
        # Before the base class, which loads the annotations in its constructor unless lazy_init is set.
        self.generator = dict(generator or {})
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Generate the data set if it is not there, and load the annotations."""
        if not self.data_root:
            raise ValueError(f'ShapesDataset needs data_root, the folder to generate into, got {self.data_root!r}')
        generate_shapes(self.data_root, **self.generator)
        return super().load_data_list()
