"""Every shipped config: short, builds, trains one step and predicts, spares S6LA's parameters from weight decay."""

import re
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

import s6la_mm  # noqa: F401

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(p for p in ROOT.rglob('*.py') if '_base_' not in p.parts)
IDS = [str(p.relative_to(ROOT)) for p in CONFIGS]
# The deep and the heavy ones differ from their neighbours in a few numbers only.
STEP_PARAMS = [
    pytest.param(path, id=name, marks=[pytest.mark.slow] if 'r101' in name or '_2x' in name or '20e' in name else [])
    for path, name in zip(CONFIGS, IDS)
]


def test_there_are_configs():
    assert len(CONFIGS) >= 17


@pytest.mark.parametrize('path', CONFIGS, ids=IDS)
def test_config_is_short_and_points_to_the_environment(path, monkeypatch):
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith('#')]
    assert len(lines) <= 20
    monkeypatch.setenv('COCO_ROOT', 'elsewhere')
    monkeypatch.setenv('S6LA_SHAPES_ROOT', 'elsewhere')
    cfg = Config.fromfile(path)
    assert cfg.custom_imports.imports == ['s6la_mm']
    for name in ('train', 'val', 'test'):
        assert cfg[f'{name}_dataloader'].dataset.data_root == 'elsewhere/'
    assert cfg.val_evaluator.ann_file.startswith('elsewhere/annotations/')
    assert cfg.test_evaluator.ann_file.startswith('elsewhere/annotations/')


@pytest.mark.parametrize('path', CONFIGS, ids=IDS)
def test_data_root_default(path, monkeypatch):
    monkeypatch.delenv('COCO_ROOT', raising=False)
    monkeypatch.delenv('S6LA_SHAPES_ROOT', raising=False)
    root = Config.fromfile(path).train_dataloader.dataset.data_root
    assert root == ('data/shapes/' if 'shapes' in path.stem else 'data/coco/')


def test_the_five_lines_of_the_readme_are_the_shipped_config(tmp_path):
    (lines,) = re.findall(r'```python\n(.*?)```', (ROOT.parent / 'README.md').read_text(), flags=re.DOTALL)
    assert len(lines.splitlines()) == 5
    (tmp_path / 'config.py').write_text(lines)
    cfg = Config.fromfile(tmp_path / 'config.py')
    shipped = Config.fromfile(ROOT / 'mask_rcnn' / 'mask-rcnn_s6la-r50_fpn_1x_coco.py')
    for key in ('model', 'optim_wrapper', 'custom_imports', 'train_cfg'):
        assert cfg[key].to_dict() == shipped[key].to_dict()


@pytest.mark.parametrize('path', STEP_PARAMS)
def test_train_step_and_prediction(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None  # no downloads
    make_cheap(cfg.model)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    check_weight_decay(model, optim_wrapper.optimizer)

    with_mask = hasattr(model, 'roi_head') and model.roi_head.with_mask
    num_classes = 6 if 'shapes' in path.stem else 80
    shapes = [[3, 64, 96], [3, 61, 80]]
    data = demo_mm_inputs(2, image_shapes=shapes, num_items=[2, 1], num_classes=num_classes, with_mask=with_mask)
    readers = {name: p for name, p in model.named_parameters() if name.endswith('read.weight') and p.requires_grad}
    model.train()
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    loss, log_vars = model.parse_losses(losses)
    assert all(torch.isfinite(value) for value in log_vars.values())
    loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, 'DistributedDataParallel would stop at these parameters'
    optim_wrapper.step()
    # The first reader sees only the initial state, zero at the start; all the others learn at once.
    assert sum(p.detach().abs().sum() > 0 for p in readers.values()) >= len(readers) - 1 > 0

    model.eval()
    data = demo_mm_inputs(1, image_shapes=shapes[:1], num_items=[1], num_classes=num_classes, with_mask=with_mask)
    with torch.no_grad():
        (result,) = model.test_step(data)
    assert result.pred_instances.bboxes.shape[1] == 4
    assert ('masks' in result.pred_instances) == with_mask


def make_cheap(model):
    """Fewer proposals and RoIs: the heads are mmdet's, and most of the time."""
    if 'roi_head' in model:
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 20
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16


def check_weight_decay(model, optimizer):
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    spared = ('A_log', 'dt_bias', 'initial_state', 'input_norm.weight')
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert (decay[id(p)] == 0) == name.endswith(spared), name
