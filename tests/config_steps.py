"""One training step and one prediction of any shipped config, at reduced size and without downloads."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from s6la_mm.backbones.families import FAMILIES
from s6la_mm.common.cli import DATA_ROOTS

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(p for p in ROOT.rglob('*.py') if not {'_base_', 'comparisons'} & set(p.parts))
ROOT_VARIABLES = (*DATA_ROOTS, 'S6LA_SHAPES_ROOT')
SHAPES = [[3, 64, 96], [3, 61, 80]]


@functools.cache
def _parse(path: Path) -> Config:
    with mock.patch.dict(os.environ, dict.fromkeys(ROOT_VARIABLES, 'elsewhere')):
        return Config.fromfile(path)


def parse(path: Path) -> Config:
    """A config with all data in the folder ``elsewhere``; each file is parsed once."""
    return copy.deepcopy(_parse(path))


def build(cfg: Config) -> nn.Module:
    """The model, as the runner builds it."""
    cfg.model.backbone.init_cfg = None  # no downloads
    cfg.model.pop('pretrained', None)
    make_cheap(cfg)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def build_without_memory(cfg: Config) -> nn.Module:
    """The model on the meta device: names and shapes at full size, at once."""
    # Drop path's rates are computed as tensors.
    with torch.device('meta'), mock.patch('torch.linspace', functools.partial(torch.linspace, device='cpu')):
        return build(cfg)


def build_optimizer(model: nn.Module, cfg: Config) -> OptimWrapper:
    """The optimizer; mixed precision needs an accelerator and is left out."""
    optim_wrapper = copy.deepcopy(cfg.optim_wrapper)
    optim_wrapper.type = 'OptimWrapper'
    optim_wrapper.pop('loss_scale', None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return build_optim_wrapper(model, optim_wrapper)


def make_cheap(cfg: Config) -> None:
    """Small images, narrow heads, few RoIs, queries and layers: the heads are upstream's, and most of the time."""
    model = cfg.model
    if cfg.default_scope == 'mmdet':
        model.data_preprocessor.pop('batch_augments', None)  # which would pad to 1024 x 1024
    if 'rpn_proposal' in (model.get('train_cfg') or {}):
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 20
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
        model.test_cfg.rcnn.max_per_img = 20
    if model.type == 'SparseRCNN':
        model.rpn_head.num_proposals = 10
        model.roi_head.num_stages = 2
        for part, name in (
            (model.roi_head, 'stage_loss_weights'),
            (model.roi_head, 'bbox_head'),
            (model.train_cfg, 'rcnn'),
        ):
            part[name] = part[name][:2]
    if 'encoder' in model:  # of a DETR
        model.encoder.num_layers = model.decoder.num_layers = 2
        model.num_queries = 20
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = (64, 96)
        for head in ('decode_head', 'auxiliary_head'):
            if head in model:
                model[head].channels = 16
    mask_head = model.get('panoptic_head') or model.get('decode_head')
    if mask_head and mask_head.type == 'Mask2FormerHead':
        mask_head.num_queries = 20
        mask_head.pixel_decoder.encoder.num_layers = 1
        mask_head.transformer_decoder.num_layers = 3  # one for each level
        (mask_head.get('train_cfg') or model.train_cfg).num_points = 128
    if any('pad_small_map' in family.small for family in FAMILIES if family.name == model.backbone.type):
        model.backbone.pad_small_map = True
    if 'drop_path_rate' in model.backbone:
        model.backbone.drop_path_rate = 0.0  # a read in a branch that both images drop does not learn in this step


def samples(scope: str, model: nn.Module, count: int) -> dict:
    """Random images with annotations: what the model's data preprocessor takes."""
    shapes = SHAPES[:count]
    if scope == 'mmdet':
        return detection_samples(model, shapes)
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        data_samples = [DataSample().set_gt_label(i) for i in range(count)]
        return dict(inputs=torch.randint(0, 256, (count, *SHAPES[0]), dtype=torch.uint8), data_samples=data_samples)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    data_samples = []
    for _, *size in shapes:
        labels = torch.randint(0, model.num_classes, (1, *size))
        labels[:, ::2] = 255
        meta = dict(img_shape=tuple(size), ori_shape=tuple(size), pad_shape=tuple(size))
        data_samples.append(SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels)))
    return dict(inputs=[torch.randint(0, 256, s, dtype=torch.uint8) for s in shapes], data_samples=data_samples)


def detection_samples(model: nn.Module, shapes: list[list[int]]) -> dict:
    """Two boxes in the first image and one in the second; masks and stuff for the models that learn them."""
    from mmdet.testing import demo_mm_inputs
    from mmengine.structures import PixelData

    if hasattr(model, 'panoptic_head'):
        things, stuff = model.panoptic_head.num_things_classes, model.panoptic_head.num_stuff_classes
    else:
        head = model.bbox_head if hasattr(model, 'bbox_head') else model.roi_head.bbox_head
        things, stuff = (head[0] if isinstance(head, nn.ModuleList) else head).num_classes, 0
    items = [2, 1][: len(shapes)]
    batch = demo_mm_inputs(len(shapes), shapes, items, num_classes=things, with_mask=predicts_masks(model))
    for sample, (_, *size) in zip(batch['data_samples'], shapes):
        if stuff:
            sample.gt_sem_seg = PixelData(sem_seg=torch.randint(things, things + stuff, (1, *size)))
    return batch


def predicts_masks(model: nn.Module) -> bool:
    """Whether a detector predicts a mask for each box."""
    return hasattr(model, 'panoptic_head') or (hasattr(model, 'roi_head') and model.roi_head.with_mask)


def train_step(path: Path) -> tuple[Config, nn.Module, OptimWrapper]:
    """One step: finite losses, a gradient for every parameter, reads that start to learn."""
    torch.manual_seed(0)
    cfg = parse(path)
    model = build(cfg).train()
    if hasattr(model, 'encoder') or cfg.model.type == 'SparseRCNN':
        model.backbone.is_init = (
            True  # as it is built: from zeros behind its residual branches no reader learns at once
        )
        model.init_weights()  # without it there are parameters without a value
    optim_wrapper = build_optimizer(model, cfg)
    readers = [p for name, p in model.backbone.named_parameters() if name.endswith('read.weight') and p.requires_grad]
    losses = model(**model.data_preprocessor(samples(cfg.default_scope, model, 2), True), mode='loss')
    loss, log_vars = model.parse_losses(losses)
    assert all(torch.isfinite(value) for value in log_vars.values())
    loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, 'DistributedDataParallel would stop at these parameters'
    for group in optim_wrapper.optimizer.param_groups:
        group['lr'] *= 0.01  # a full step from random weights lets 152 layers overflow in evaluation mode
    optim_wrapper.step()
    # A ResNet's first reader sees only the initial state, zero at the start; all the others learn at once.
    assert sum(p.detach().abs().sum() > 0 for p in readers) >= len(readers) - 1 > 0
    return cfg, model, optim_wrapper


def check_prediction(cfg: Config, model: nn.Module) -> None:
    """The prediction of one image has the form that the task asks for."""
    model.eval()
    with torch.no_grad():
        (result,) = model.test_step(samples(cfg.default_scope, model, 1))
    if cfg.default_scope == 'mmdet':
        assert result.pred_instances.bboxes.shape[1] == 4
        assert ('masks' in result.pred_instances) == predicts_masks(model)
        if getattr(model, 'num_stuff_classes', 0):
            assert result.pred_panoptic_seg.sem_seg.shape == (1, 64, 96)
    elif cfg.default_scope == 'mmseg':
        assert result.pred_sem_seg.shape == (64, 96) and result.seg_logits.data.shape[0] == model.num_classes
    else:
        assert result.pred_score.shape == (1000,)
        torch.testing.assert_close(result.pred_score.sum(), torch.tensor(1.0))
