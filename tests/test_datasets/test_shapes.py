"""The generated shapes data set: deterministic, valid COCO, written safely, and read by mmdet unchanged."""

from __future__ import annotations

import colorsys
import filecmp
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from forked import Forked
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from s6la_mm.datasets import ShapesDataset, generate_shapes
from s6la_mm.datasets.shapes import SPLITS, _segmentation
from s6la_mm.datasets.shapes_render import CLASSES

TINY = dict(num_train=24, num_val=16, image_size=96)
# Draws the tiny set in another process.
SCRIPT = f'import sys; from s6la_mm.datasets import generate_shapes; generate_shapes(sys.argv[1], **{TINY})'


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp('shapes') / 'set', **TINY)


def read(root: Path, split: str) -> dict:
    return json.loads((root / 'annotations' / f'{split}.json').read_text())


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())


def assert_same_files(a: Path, b: Path) -> None:
    assert files(a) == files(b)
    _, different, unreadable = filecmp.cmpfiles(a, b, files(a), shallow=False)
    assert not different and not unreadable


def split_coco(root: Path, split: str) -> COCO:
    return COCO(str(root / 'annotations' / f'{split}.json'))


# --- Determinism


def test_same_seed_gives_the_same_bytes(root, tmp_path):
    assert_same_files(root, generate_shapes(tmp_path / 'again', **TINY))


def test_other_seed_gives_other_images(root, tmp_path):
    other = generate_shapes(tmp_path / 'other', seed=1, **TINY)
    assert read(root, 'train')['annotations'] != read(other, 'train')['annotations']
    for name in ('train/000000.png', 'val/000003.png'):
        assert (root / name).read_bytes() != (other / name).read_bytes()


def test_images_do_not_depend_on_their_number_or_on_each_other(root, tmp_path):
    few = generate_shapes(tmp_path / 'few', **{**TINY, 'num_train': 3, 'num_val': 5})
    for split, count in dict(train=3, val=5).items():
        for index in range(count):
            name = f'{split}/{index:06d}.png'
            assert (root / name).read_bytes() == (few / name).read_bytes()
        kept = [a for a in read(root, split)['annotations'] if a['image_id'] <= count]
        assert kept == read(few, split)['annotations']
    assert (root / 'train/000000.png').read_bytes() != (root / 'val/000000.png').read_bytes()
    assert (root / 'train/000000.png').read_bytes() != (root / 'train/000001.png').read_bytes()


# --- Annotations


@pytest.mark.parametrize('split', SPLITS)
def test_annotations_are_valid_coco(root, split):
    coco = split_coco(root, split)
    annotations = coco.dataset['annotations']
    assert len(coco.imgs) == TINY[f'num_{split}'] == len(coco.dataset['images'])
    assert len(coco.anns) == len(annotations)  # ids are unique
    assert {c['id']: c['name'] for c in coco.dataset['categories']} == dict(
        enumerate(ShapesDataset.METAINFO['classes'], start=1)
    )
    assert {a['category_id'] for a in annotations} == set(coco.cats)
    for annotation in annotations:
        rle = coco.annToRLE(annotation)
        assert annotation['iscrowd'] == 0
        assert annotation['area'] == mask_utils.area(rle) > 0
        assert annotation['bbox'] == mask_utils.toBbox(rle).tolist()
        assert rle['size'] == [TINY['image_size']] * 2
    for image_id, image in coco.imgs.items():
        assert (root / split / image['file_name']).is_file()
        assert 1 <= len(coco.getAnnIds(image_id)) <= 7


@pytest.mark.parametrize('split', SPLITS)
def test_both_kinds_of_segmentation_are_used(root, split):
    coco = split_coco(root, split)
    polygons = [a for a in coco.anns.values() if isinstance(a['segmentation'], list)]
    rles = [a for a in coco.anns.values() if isinstance(a['segmentation'], dict)]
    assert polygons and rles
    assert all(isinstance(a['segmentation']['counts'], str) for a in rles)
    assert coco.getCatIds(['ring'])[0] in {a['category_id'] for a in rles}


@pytest.mark.parametrize('split', SPLITS)
def test_masks_are_modal(root, split):
    """Visible masks never overlap, though the boxes do, and some objects lost a part to the one in front."""
    coco = split_coco(root, split)
    overlapping_boxes = 0
    for image_id in coco.imgs:
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert np.sum([coco.annToMask(a) for a in annotations], axis=0).max() == 1
        boxes = [a['bbox'] for a in annotations]
        ious = mask_utils.iou(np.array(boxes), np.array(boxes), [0] * len(boxes))
        overlapping_boxes += int((np.triu(ious, 1) > 0.05).sum())
    assert overlapping_boxes >= 5


def test_occlusion_cuts_circles(root):
    """A whole ellipse fills pi/4 of the box around it; one with a piece taken out and one cut off do not."""
    coco = split_coco(root, 'train')
    circles = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(['circle'])))
    fill = np.array([a['area'] / (a['bbox'][2] * a['bbox'][3]) for a in circles])
    assert (np.abs(fill - np.pi / 4) < 0.03).any()
    assert (np.abs(fill - np.pi / 4) > 0.06).any()


def test_objects_differ_in_scale(root):
    sides = [max(a['bbox'][2:]) for a in read(root, 'train')['annotations']]
    assert max(sides) > 3 * min(sides)


def test_colour_is_a_cue_that_does_not_give_the_class_away(root):
    """Whoever names the class whose hues are nearest is right more often than by chance, and often wrong."""
    import cv2

    right = []
    for split in SPLITS:
        coco = split_coco(root, split)
        for annotation in coco.anns.values():
            picture = cv2.imread(str(root / split / coco.imgs[annotation['image_id']]['file_name']))
            mean = picture[coco.annToMask(annotation) > 0].mean(axis=0)
            hue = colorsys.rgb_to_hsv(*mean / 255)[0]  # the renderer's circle goes blue, green, red
            right.append(round(hue * len(CLASSES)) % len(CLASSES) == annotation['category_id'] - 1)
    assert 2 / len(CLASSES) < np.mean(right) < 0.9


@pytest.mark.parametrize(
    ('rows', 'kind'),
    [
        (['....', '.##.', '.#..', '....'], list),
        (['##..', '####', '...#', '...#'], list),  # concave corners, and pixels on the image border
        (['.#..', '#...', '....', '....'], list),  # pixels that touch at a corner
        (['....', '....', '..#.', '....'], list),
        (['###.', '#.#.', '###.', '....'], dict),  # a hole
        (['#..#', '#..#', '....', '....'], dict),  # two pieces
    ],
)
def test_segmentation_gives_the_mask_back(rows, kind):
    mask = np.array([[c == '#' for c in row] for row in rows])
    segmentation, rle = _segmentation(mask)
    assert isinstance(segmentation, kind)
    stored = json.loads(json.dumps(segmentation))
    if isinstance(stored, list):
        stored = mask_utils.merge(mask_utils.frPyObjects(stored, *mask.shape))
    assert np.array_equal(mask_utils.decode(stored), mask)
    assert np.array_equal(mask_utils.decode(rle), mask)


# --- Writing and reusing


def test_second_call_reuses_the_set(root):
    before = {name: (root / name).stat().st_mtime_ns for name in files(root)}
    assert generate_shapes(root, **TINY) == root
    assert {name: (root / name).stat().st_mtime_ns for name in files(root)} == before


def test_meta_names_every_parameter(root):
    meta = json.loads((root / 'meta.json').read_text())
    assert {**TINY, 'seed': 0}.items() <= meta.items()
    assert 'version' in meta


def test_other_parameters_are_refused(root):
    with pytest.raises(ValueError, match=r'seed is 0 there, 7 is asked for') as error:
        generate_shapes(root, **{**TINY, 'seed': 7})
    for word in (str(root), 'S6LA_SHAPES_ROOT', 'data_root', 'delete'):
        assert word in str(error.value)
    assert 'num_train' not in str(error.value)


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / 'photo.jpg').write_text('not ours')
    with pytest.raises(ValueError, match='S6LA_SHAPES_ROOT') as error:
        generate_shapes(tmp_path, **TINY)
    assert str(tmp_path) in str(error.value)
    (tmp_path / 'meta.json').write_text('{"generator": "another"}')
    with pytest.raises(ValueError, match='no generated shapes data set'):
        generate_shapes(tmp_path, **TINY)
    assert files(tmp_path) == ['meta.json', 'photo.jpg']


def test_damaged_set_is_refused(tmp_path):
    tiny = dict(num_train=2, num_val=1, image_size=64)
    root = generate_shapes(tmp_path / 'set', **tiny)
    (root / 'train' / '000001.png').unlink()
    with pytest.raises(ValueError, match=r'1 of 2 pictures in train/.*Delete'):
        generate_shapes(root, **tiny)


def test_empty_folder_link_and_missing_parents_are_fine(tmp_path):
    tiny = dict(num_train=1, num_val=1, image_size=64)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'empty')
    assert generate_shapes(tmp_path / 'link', **tiny) == tmp_path / 'link'
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'empty' / 'meta.json').is_file()
    assert (generate_shapes(tmp_path / 'a' / 'b', **tiny) / 'meta.json').is_file()


def test_unwritable_root_names_the_path_and_the_variable(tmp_path):
    (tmp_path / 'file').write_text('a file cannot hold a folder, not even for the superuser')
    with pytest.raises(OSError, match='S6LA_SHAPES_ROOT') as error:
        generate_shapes(tmp_path / 'file' / 'shapes', **TINY)
    assert str(tmp_path / 'file' / 'shapes') in str(error.value)


@pytest.mark.parametrize('wrong', [dict(num_train=0), dict(num_val=1.5), dict(image_size=8), dict(seed=-1)])
def test_wrong_parameters_are_named(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f'{name} must be an integer of at least .*{value}'):
        generate_shapes(tmp_path / 'set', **wrong)
    assert not (tmp_path / 'set').exists()


def test_failure_midway_leaves_nothing(tmp_path, monkeypatch):
    from s6la_mm.datasets import shapes

    def fail_at_val(folder, split, *args):
        if split == 'val':
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(shapes, '_write_split', fail_at_val)
    with pytest.raises(OSError, match='No space left on device'):
        generate_shapes(tmp_path / 'set', **TINY)
    assert list(tmp_path.iterdir()) == []


def test_loser_of_a_race_takes_the_set_of_the_winner(root, tmp_path, monkeypatch):
    """Another process finishes while this one still draws."""
    from s6la_mm.datasets import shapes

    write_split = shapes._write_split

    def overtaken(*args):
        write_split(*args)
        monkeypatch.setattr(shapes, '_write_split', write_split)
        generate_shapes(tmp_path / 'set', **TINY)
        (tmp_path / 'set' / 'winner').touch()

    monkeypatch.setattr(shapes, '_write_split', overtaken)
    assert generate_shapes(tmp_path / 'set', **TINY) == tmp_path / 'set'
    assert [path.name for path in tmp_path.iterdir()] == ['set']
    assert files(tmp_path / 'set') == sorted([*files(root), 'winner'])


def test_two_processes_at_once(root, tmp_path):
    started = [Forked('-c', SCRIPT, tmp_path / 'set', log=tmp_path / f'{number}.log') for number in range(2)]
    assert [process.wait() for process in started] == [0, 0], started[0].output + started[1].output
    assert_same_files(root, tmp_path / 'set')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['0.log', '1.log', 'set']


@pytest.mark.skipif(os.name != 'posix', reason='needs SIGKILL')
def test_killed_process_leaves_no_data_set(root, tmp_path):
    endless = SCRIPT.replace("'num_train': 24", "'num_train': 1000000")
    assert endless != SCRIPT
    process = Forked('-c', endless, tmp_path / 'set', log=tmp_path / 'log')
    try:
        process.wait_until(lambda: len(list(tmp_path.glob('.*/train/*.png'))) >= 3)
    finally:
        process.kill()
    assert not (tmp_path / 'set').exists()
    assert_same_files(root, generate_shapes(tmp_path / 'set', **TINY))


# --- ShapesDataset


def config(root: Path, split: str = 'train', **options) -> dict:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
    return Config(
        dict(
            type='ShapesDataset',
            data_root=str(root),
            ann_file=f'annotations/{split}.json',
            data_prefix=dict(img=f'{split}/'),
            pipeline=pipeline,
            generator=TINY,
            **options,
        )
    )._cfg_dict


def build(*args, **kwargs) -> ShapesDataset:
    """Build as the Runner does for a config with ``default_scope='mmdet'``."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(config(*args, **kwargs))


@pytest.mark.parametrize(('split', 'serialize'), list(itertools.product(SPLITS, (True, False))))
def test_mmdet_pipeline_reads_every_mask(root, split, serialize):
    dataset = build(root, split, serialize_data=serialize, test_mode=split == 'val')
    coco = split_coco(root, split)
    assert type(dataset) is ShapesDataset and len(dataset) == TINY[f'num_{split}']
    seen = set()
    for data in dataset:
        annotations = coco.loadAnns(coco.getAnnIds(data['img_id']))
        assert data['img'].shape == (96, 96, 3)
        assert not data['gt_ignore_flags'].any()
        assert len(data['gt_masks']) == len(annotations) == len(data['gt_bboxes'])
        assert data['gt_bboxes_labels'].tolist() == [a['category_id'] - 1 for a in annotations]
        for mask, box, annotation in zip(data['gt_masks'].masks, data['gt_bboxes'].numpy(), annotations):
            assert np.array_equal(mask, coco.annToMask(annotation))
            x, y, w, h = annotation['bbox']
            assert box.tolist() == [x, y, x + w, y + h]
            seen.add(type(annotation['segmentation']))
    assert seen == {list, dict}


def test_first_use_generates_and_lazy_init_waits(root, tmp_path):
    dataset = build(tmp_path / 'set', lazy_init=True)
    assert not (tmp_path / 'set').exists()
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 6
    dataset.full_init()
    assert len(dataset) == TINY['num_train']
    assert_same_files(root, tmp_path / 'set')


def test_other_generator_options_are_refused(root):
    with pytest.raises(ValueError, match='num_val is 16 there, 17 is asked for'):
        ShapesDataset(data_root=str(root), ann_file='annotations/val.json', generator={**TINY, 'num_val': 17})


def test_data_root_is_required():
    with pytest.raises(ValueError, match='data_root'):
        ShapesDataset(ann_file='annotations/val.json')


def test_ground_truth_scores_one_in_coco_metric(root):
    """An evaluation as the Runner does it: the annotations themselves have an mAP of 1."""
    import torch
    from mmdet.evaluation import CocoMetric

    dataset = build(root, 'val', test_mode=True)
    metric = CocoMetric(ann_file=str(root / 'annotations' / 'val.json'), metric=['bbox', 'segm'])
    metric.dataset_meta = dataset.metainfo
    for data in dataset:
        labels = torch.from_numpy(data['gt_bboxes_labels'])
        prediction = dict(
            bboxes=data['gt_bboxes'].tensor,
            scores=torch.ones(len(labels)),
            labels=labels,
            masks=torch.from_numpy(data['gt_masks'].masks).bool(),
        )
        sample = dict(img_id=data['img_id'], ori_shape=data['ori_shape'], pred_instances=prediction)
        metric.process({}, [sample])
    scores = metric.evaluate(size=len(dataset))
    assert scores['coco/bbox_mAP'] == scores['coco/segm_mAP'] == 1
