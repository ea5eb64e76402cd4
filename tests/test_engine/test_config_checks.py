"""Classes of heads against those of the data, metrics, weight decay of the state."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from tool_runner import ROOT, load

from s6la_mm.backbones import S6LAResNet
from s6la_mm.backbones.architectures import on_meta_device
from s6la_mm.common.configs import metainfo_of, without_worker_options
from s6la_mm.common.errors import UsageError
from s6la_mm.engine.config_checks import (
    class_problems,
    decayed_state,
    file_problems,
    learning_rate_advice,
    metric_problems,
)

NAMES = {number: dict(classes=tuple(f'class {i}' for i in range(number))) for number in (2, 80, 133, 150, 1000)}
PANOPTIC = dict(NAMES[133], thing_classes=NAMES[80]['classes'], stuff_classes=('stuff',) * 53)
# A config, the classes of its data, and which heads complain when the data has two classes.
CONFIGS = {
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': (80, ['bbox_head']),
    'mmdet::rpn/rpn_r50_fpn_1x_coco.py': (80, []),
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': (
        80,
        [f'roi_head.{part}_head.{stage}' for part in ('bbox', 'mask') for stage in range(3)],
    ),
    'mmdet::htc/htc_r50_fpn_1x_coco.py': (
        80,
        [f'roi_head.{part}_head.{stage}' for part in ('bbox', 'mask') for stage in range(3)],
    ),
    'mmdet::detr/detr_r50_8xb2-150e_coco.py': (80, ['bbox_head']),
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': (80, ['panoptic_fusion_head', 'panoptic_head']),
    'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py': (150, ['decode_head', 'auxiliary_head']),
    'mmpretrain::resnet/resnet50_8xb32-mixup_in1k.py': (1000, ['head', 'data_preprocessor']),
}


def build(name: str, **changes: object) -> torch.nn.Module:
    from mmengine.hub import get_config

    cfg = get_config(name) if '::' in name else Config.fromfile(ROOT / 'configs' / name)
    cfg.merge_from_dict(changes)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # as the runner does
    with on_meta_device(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def test_what_says_nothing_of_classes():
    assert (
        metainfo_of(SimpleNamespace(metainfo=[NAMES[2], NAMES[80]])) == NAMES[2]
    )  # mmdet's of joined ones that differ
    assert metainfo_of([1, 2]) == {} and file_problems('train', [1, 2]) == []
    tracker = type('Tracker', (type('BaseMOTModel', (torch.nn.Module,), {}),), {})()
    tracker.head = torch.nn.Identity()
    tracker.head.num_classes = 1
    assert class_problems(tracker, dict(val=NAMES[80])) == []
    binary = torch.nn.ModuleDict(dict(decode_head=torch.nn.Identity()))
    binary.decode_head.num_classes = 1
    assert len(class_problems(binary, dict(train=NAMES[2]))) == 1
    binary.decode_head.out_channels = 1
    assert class_problems(binary, dict(train=NAMES[2])) == []


def heads(problems: list[str]) -> set[str]:
    return {problem.partition(' ')[0].removeprefix('model.') for problem in problems}


@pytest.mark.parametrize('name', CONFIGS)
def test_heads_with_other_classes_than_the_data(name):
    pytest.importorskip(name.partition('::')[0])
    number, expected = CONFIGS[name]
    model = build(name)
    assert class_problems(model, dict(train=NAMES[number], val=NAMES[number])) == []
    assert heads(class_problems(model, dict(train=NAMES[2]))) == set(expected)
    assert class_problems(model, dict(train={}, val=dict(classes=None))) == []
    (problem,) = class_problems(model, dict(train=dict(classes='cat')))
    assert "the train classes are the text 'cat'" in problem and "write ('cat',)" in problem


def test_heads_of_panoptic_networks():
    model = build('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py')
    assert class_problems(model, dict(train=PANOPTIC)) == []
    fewer = dict(PANOPTIC, thing_classes=('a', 'b'))
    parts = {'roi_head.bbox_head', 'roi_head.mask_head', 'semantic_head', 'panoptic_fusion_head'}
    assert heads(class_problems(model, dict(train=fewer))) == parts


def test_what_is_said_of_classes():
    model = build('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', **{'model.bbox_head.num_classes': 1})
    both = dict(train=dict(classes=['cat', 'dog']), val=dict(classes=('dog', 'cat')))
    assert class_problems(model, both) == [
        'model.bbox_head has num_classes=1, the train data 2 classes (cat, dog)',
        'model.bbox_head has num_classes=1, the val data 2 classes (dog, cat)',
        "class 0 is 'cat' in the train data and 'dog' in the val data",
    ]


def test_class_names_that_the_file_of_a_metric_does_not_know():
    content = dict(categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])
    metric = SimpleNamespace(_coco_api=SimpleNamespace(dataset=content))
    assert metric_problems([metric, SimpleNamespace()], ('dog', 'cat')) == []
    (problem,) = metric_problems([metric], ('Dog', 'cat'))
    assert "has no category 'Dog'; it has cat, dog" in problem


def test_classes_that_a_coco_file_lacks():
    whole = SimpleNamespace(metainfo=dict(classes=('cat', 'dog')), cat_ids=[1, 2], ann_file='whole.json')
    part = SimpleNamespace(metainfo=dict(classes=('cat', 'dog')), cat_ids=[1], ann_file='part.json')
    both = SimpleNamespace(datasets=[whole, SimpleNamespace(dataset=part)])
    assert file_problems('train', both) == ['part.json has categories for 1 of the 2 train classes']
    assert file_problems('train', SimpleNamespace(metainfo={})) == []


class Broken(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        raise KeyError('iscrowd')


class Counting(Broken):
    def compute_metrics(self, results):
        return dict(images=len(results))


def test_metrics_of_the_first_batch(tmp_path):
    evaluate = load('misc/check_config.py').evaluate
    cfg = Config(dict(work_dir=str(tmp_path), default_hooks=dict(checkpoint=dict(save_best='images'), timer=None)))
    evaluate(Evaluator(Counting(prefix='')), {}, [{}, {}], cfg)
    with pytest.raises(UsageError, match=r"\(Broken\) cannot evaluate the first batch: KeyError: 'iscrowd'"):
        evaluate(Evaluator(Broken()), {}, [{}], cfg)
    cfg.custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP')]
    with pytest.raises(UsageError, match=r"waits for the metric 'coco/bbox_mAP', the evaluator gives images"):
        evaluate(Evaluator(Counting()), {}, [{}], cfg)


def test_shared_memory_for_the_batches_of_the_workers(monkeypatch):
    tool = load('misc/check_config.py')
    instances = InstanceData(bboxes=HorizontalBoxes(torch.zeros(3, 4)))
    batch = dict(inputs=[torch.zeros(3, 8, 8, dtype=torch.uint8)], data_samples=[instances])
    assert tool.bytes_of(batch) == 3 * 8 * 8 + 3 * 4 * 4
    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(total=64 * 2**20))
    monkeypatch.setattr('os.path.isdir', lambda folder: True)
    tool.check_shared_memory(Config(dict(train_dataloader=dict(num_workers=4))), 8 * 2**20)
    with pytest.raises(UsageError, match=r'16 batches of 8.0 MiB that 4 workers prepare need 128 MiB, /dev/shm has 64'):
        tool.check_shared_memory(Config(dict(train_dataloader=dict(num_workers=4, prefetch_factor=4))), 8 * 2**20)


def test_state_under_weight_decay():
    model = torch.nn.Sequential(S6LAResNet(18, base_channels=8))
    params = [dict(params=list(model.parameters()), weight_decay=0.05)]
    names = decayed_state(model, torch.optim.AdamW(params))
    assert any(name.endswith('A_log') for name in names) and '0.conv1.weight' not in names
    assert decayed_state(model, torch.optim.SGD(model.parameters(), lr=0.1)) == []


@pytest.mark.parametrize(
    'train, processes, expected',
    [
        (dict(batch_size=2), 8, None),
        (dict(batch_size=2), 2, '2 x 2 are 4'),
        (dict(batch_sampler=dict(type='Ours', batch_size=16)), 4, '4 x 16 are 64'),
    ],
)
def test_learning_rate_for_another_batch(train, processes, expected):
    cfg = Config(dict(auto_scale_lr=dict(enable=False, base_batch_size=16), train_dataloader=train))
    advice = learning_rate_advice(cfg, processes)
    assert advice is None if expected is None else expected in advice
    cfg.auto_scale_lr.enable = True
    assert learning_rate_advice(cfg, processes) is None


def test_options_of_workers_that_are_not_there():
    options = dict(num_workers=0, persistent_workers=True, prefetch_factor=4)
    loader = dict(dataset=[1, 2], sampler=dict(type='DefaultSampler', shuffle=False), **options)
    cfg = Config(dict(train_dataloader=loader, val_dataloader=dict(loader, num_workers=1), test_dataloader=None))
    without_worker_options(cfg)
    assert list(Runner.build_dataloader(dict(cfg.train_dataloader, dataset=[1, 2]))) == [[1], [2]]
    assert cfg.val_dataloader.persistent_workers
