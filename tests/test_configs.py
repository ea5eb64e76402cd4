"""Every shipped config: short, builds, trains one step and predicts, spares S6LA's parameters from weight decay."""

import copy
import re

import pytest
import torch
from config_steps import (
    CONFIGS,
    ROOT,
    ROOT_VARIABLES,
    build_optimizer,
    build_without_memory,
    check_prediction,
    parse,
    train_step,
)
from mmengine.config import Config
from mmengine.registry import DATASETS

from s6la_mm import datasets
from s6la_mm.common.configs import datasets_of
from s6la_mm.engine import make_resumable
from s6la_mm.optim import undecayed_parameters

IDS = [str(p.relative_to(ROOT)) for p in CONFIGS]
# A config with a longer schedule, and the one with the shorter schedule that has its model: one step tells for both.
LONGER = (('_2x_', '_1x_'), ('_20e_', '_1x_'), ('_amp-ms-crop-3x_', '_1x_'), ('-160k_', '-80k_'))
SHORTER = {
    name: name.replace(*pair) for name in IDS for pair in LONGER if pair[0] in name and name.replace(*pair) in IDS
}
SMOKE = {  # one of each scope, for the oldest supported torch
    'retinanet/retinanet_s6la-r50_fpn_1x_coco.py',
    'sem_fpn/fpn_s6la-pvtv2-b0_8xb4-40k_ade20k-512x512.py',
    'imagenet/s6la-deit-tiny_4xb256_in1k.py',
}
# The networks of other configs on other data, and with heads of which a larger or a smaller one is tried by day.
RELATED = re.compile(
    'voc|lvis|cityscapes|deformable-detr_|300-proposals|segformer_s6la-r50'
    '|mask2former_s6la-r50_8xb2-(160k|lsj-50e_coco.py)|mask2former_s6la-swin-t_8xb2-lsj'
)
# Networks of which a smaller one with the same heads is tried by day.
LARGER = re.compile('s6la-(r101|r152|pvtv2-b[12]|(swin|convnext)-(s|b|small|base)|deit-b16|deit-base|vit-b)_')


def by_day(names):
    """All configs, of which those that ``names`` names run by day."""
    marks = [[pytest.mark.smoke] if n in SMOKE else [] if n in names else [pytest.mark.nightly] for n in IDS]
    return [pytest.param(path, id=name, marks=mark) for path, name, mark in zip(CONFIGS, IDS, marks)]


DIFFERENT = [name for name in IDS if not RELATED.search(name)]
# One config for each file of configs/_base_ that names a data set.
DEFAULT_ROOTS = {
    'faster_rcnn/faster-rcnn_s6la-r50_fpn_1x_voc0712.py': 'data/VOCdevkit/',
    'mask2former/mask2former_s6la-r50_8xb2-160k_ade20k-512x512.py': 'data/ade/ADEChallengeData2016',
    'mask2former/mask2former_s6la-r50_8xb2-90k_cityscapes-512x1024.py': 'data/cityscapes/',
    'mask2former/mask2former_s6la-r50_8xb2-lsj-50e_coco-panoptic.py': 'data/coco/',
    'mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_cityscapes.py': 'data/cityscapes/',
    'mask_rcnn/mask-rcnn_s6la-r50_fpn_sample1e-3_ms-1x_lvis-v1.py': 'data/lvis_v1/',
    'segformer/segformer_s6la-pvtv2-b0_8xb1-160k_cityscapes-1024x1024.py': 'data/cityscapes/',
    'upernet/upernet_s6la-r50_4xb4-40k_voc12aug-512x512.py': 'data/VOCdevkit/VOC2012',
    'quickstart/mask-rcnn_s6la-r18_shapes.py': 'data/shapes/',
    'mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_coco.py': 'data/coco/',
    'mask_rcnn/mask-rcnn_s6la-vit-b_simple-fpn_lsj-100e_coco.py': 'data/coco/',
    'retinanet/retinanet_s6la-r50_fpn_1x_coco.py': 'data/coco/',
    'retinanet/retinanet_s6la-pvtv2-b0_fpn_1x_coco.py': 'data/coco/',
    'upernet/upernet_s6la-r50_4xb4-80k_ade20k-512x512.py': 'data/ade/ADEChallengeData2016',
    'upernet/upernet_s6la-r18_camvid.py': 'data/camvid',
    'imagenet/s6la-r50_8xb32_in1k.py': 'data/imagenet',
}
# Configs whose upstream twin differs in the backbone alone.
TWINS = {
    'imagenet/s6la-r152_8xb32_in1k.py': 'mmpretrain::resnet/resnet152_8xb32_in1k.py',
    'imagenet/s6la-deit-base_16xb64_in1k.py': 'mmpretrain::deit/deit-base_16xb64_in1k.py',
    'imagenet/s6la-swin-small_16xb64_in1k.py': 'mmpretrain::swin_transformer/swin-small_16xb64_in1k.py',
    'upernet/upernet_s6la-r101_4xb4-160k_ade20k-512x512.py': 'mmseg::upernet/upernet_r101_4xb4-160k_ade20k-512x512.py',
    'upernet/upernet_s6la-deit-b16_mln_8xb2-160k_ade20k-512x512.py': (
        'mmseg::vit/vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512.py'
    ),
    'upernet/upernet_s6la-swin-b_8xb2-160k_ade20k-512x512.py': (
        'mmseg::swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
    ),
    'imagenet/s6la-convnext-base_32xb128_in1k.py': 'mmpretrain::convnext/convnext-base_32xb128_in1k.py',
    'upernet/upernet_s6la-convnext-s_8xb2-amp-160k_ade20k-512x512.py': (
        'mmseg::convnext/convnext-small_upernet_8xb2-amp-160k_ade20k-512x512.py'
    ),
    'upernet/upernet_s6la-convnext-b_8xb2-amp-160k_ade20k-512x512.py': (
        'mmseg::convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py'
    ),
    'mask_rcnn/mask-rcnn_s6la-convnext-t_fpn_amp-ms-crop-3x_coco.py': (
        'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
    ),
    'fcn/fcn_s6la-r50-d8_4xb4-80k_ade20k-512x512.py': 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mask_rcnn/mask-rcnn_s6la-swin-s_fpn_amp-ms-crop-3x_coco.py': (
        'mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py'
    ),
    'retinanet/retinanet_s6la-pvtv2-b2_fpn_1x_coco.py': 'mmdet::pvt/retinanet_pvtv2-b2_fpn_1x_coco.py',
    'faster_rcnn/faster-rcnn_s6la-r50_fpn_1x_voc0712.py': 'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    'mask2former/mask2former_s6la-swin-t_8xb2-90k_cityscapes-512x1024.py': (
        'mmseg::mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py'
    ),
    'mask2former/mask2former_s6la-swin-t_8xb2-lsj-50e_coco-panoptic.py': (
        'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic.py'
    ),
    'mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_cityscapes.py': 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py',
    'upernet/upernet_s6la-r50_4xb4-40k_voc12aug-512x512.py': 'mmseg::upernet/upernet_r50_4xb4-40k_voc12aug-512x512.py',
}


def test_there_are_configs():
    assert len(CONFIGS) >= 92 and set(IDS) >= SMOKE


@pytest.mark.parametrize('path', CONFIGS, ids=IDS)
def test_what_the_config_says(path):
    """All of it in one test, since parsing takes most of the time."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith('#')]
    assert len(lines) <= 20
    cfg = parse(path)
    assert cfg.custom_imports.imports == ['s6la_mm']
    # The step below gives every parameter a gradient.
    assert not cfg.get('find_unused_parameters') and 'find_unused_parameters' not in cfg.get('model_wrapper_cfg', {})
    points_to_the_environment(cfg)
    has_the_classes_of_the_data(cfg)
    names_loops_and_hooks(cfg)


def points_to_the_environment(cfg):
    loaders = [cfg[f'{name}_dataloader'] for name in ('train', 'val', 'test')]
    roots = [root for loader in loaders for root in values_of(loader, 'data_root')]
    assert len(roots) >= 3 and {root.rstrip('/') for root in roots} <= {'elsewhere', 'elsewhere/VOC2012'}
    evaluators = [cfg.val_evaluator, cfg.test_evaluator]
    files = [file for key in ('ann_file', 'seg_prefix') for file in values_of(evaluators, key)]
    assert all(file.startswith('elsewhere/') for file in files)
    assert bool(files) == (cfg.default_scope == 'mmdet' and 'VOCMetric' not in values_of(evaluators, 'type'))


def has_the_classes_of_the_data(cfg):
    kinds = {part.type for part in datasets_of(cfg.train_dataloader.dataset)}
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        classes = {len((getattr(datasets, kind, None) or registry.get(kind)).METAINFO['classes']) for kind in kinds}
    things, stuff = (values_of(cfg.model, f'num_{kind}_classes') for kind in ('things', 'stuff'))
    heads = [sum(pair) for pair in zip(things, stuff)] or values_of(cfg.model, 'num_classes')
    assert set(heads) == classes


def names_loops_and_hooks(cfg):
    """So that it trains alike under our tool, which has nothing left to fill in, and under those of others."""
    assert cfg.train_cfg.type in ('ResumableEpochBasedTrainLoop', 'ResumableIterBasedTrainLoop')
    hooks = [cfg.default_hooks[name].type for name in ('checkpoint', 'preemption', 'nonfinite')]
    assert hooks == ['SafeCheckpointHook', 'PreemptionHook', 'NonFiniteHook']
    filled = copy.deepcopy(cfg)
    make_resumable(filled)
    assert filled.to_dict() == cfg.to_dict()


def values_of(cfg, key):
    """The values that a key has anywhere in a config."""
    if isinstance(cfg, dict):
        own = [cfg[key]] if key in cfg else []
        return own + [value for part in cfg.values() for value in values_of(part, key)]
    return [value for part in cfg for value in values_of(part, key)] if isinstance(cfg, (list, tuple)) else []


@pytest.mark.parametrize('name', DEFAULT_ROOTS)
def test_data_root_default(name, monkeypatch):
    for variable in ROOT_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    cfg = Config.fromfile(ROOT / name)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert {part.data_root for part in datasets_of(loader.dataset)} == {DEFAULT_ROOTS[name]}
    files = values_of(cfg.test_evaluator, 'ann_file')
    assert all(file.startswith(f'{DEFAULT_ROOTS[name]}annotations/') for file in files)


@pytest.mark.parametrize('name', TWINS)
def test_recipe_is_upstreams(name, tmp_path):
    """Schedule, optimizer, batch, augmentation, heads and drop path; loops and hooks as the tool fills them in."""
    (tmp_path / 'twin.py').write_text(f"_base_ = '{TWINS[name]}'")
    ours, theirs = parse(ROOT / name), Config.fromfile(tmp_path / 'twin.py')
    make_resumable(theirs)
    ours, theirs = without_scopes(ours), without_scopes(theirs)
    if 'constructor' not in theirs['optim_wrapper']:
        assert ours['optim_wrapper'].pop('constructor') == 'S6LAOptimWrapperConstructor'
    if ours['default_scope'] == 'mmpretrain':  # whose tools add these
        theirs['train_dataloader'].update(collate_fn=dict(type='default_collate'), persistent_workers=True)
    for cfg in (ours, theirs):
        cfg['model'].pop('pretrained', None)
        cfg['train_cfg'].setdefault('val_interval', 1)
        for part in datasets_of(cfg['train_dataloader']['dataset']):
            part.pop('data_root')
    backbones = [cfg['model'].pop('backbone') for cfg in (ours, theirs)]
    assert backbones[0].get('drop_path_rate') == backbones[1].get('drop_path_rate')
    for key in ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader', 'default_hooks'):
        assert ours.get(key) == theirs.get(key), key


def without_scopes(cfg):
    """The plain dicts of a config, without the scopes that mmengine notes where a base is from."""
    if isinstance(cfg, Config):
        cfg = cfg.to_dict()
    if isinstance(cfg, dict):
        return {key: without_scopes(value) for key, value in cfg.items() if key != '_scope_'}
    return [without_scopes(value) for value in cfg] if isinstance(cfg, (list, tuple)) else cfg


def test_the_python_blocks_of_the_documents_are_shipped_configs(tmp_path):
    """With what ``tools/train.py`` fills in: all the same but where the data is and the check of labels beforehand."""
    pages = ''.join((ROOT.parent / name).read_text() for name in ('README.md', 'docs/segmentation.md'))
    blocks = re.findall(r'```python\n(_base_.*?)```', pages, flags=re.DOTALL)
    assert blocks[0] in (ROOT.parent / 'docs/backbones.md').read_text()
    shipped = dict(
        mmdet=ROOT / 'mask_rcnn' / 'mask-rcnn_s6la-r50_fpn_1x_coco.py',
        mmseg=ROOT / 'upernet' / 'upernet_s6la-r50_4xb4-80k_ade20k-512x512.py',
    )
    variables = ('s6la_hooks', 'loader_at_root', 'evaluator_at_root', 'data_root')
    for lines in blocks:
        assert len(lines.splitlines()) == 4
        (tmp_path / 'config.py').write_text(lines)
        cfg = Config.fromfile(tmp_path / 'config.py')
        make_resumable(cfg)
        ours, theirs = (without_scopes(c) for c in (cfg, parse(shipped.pop(cfg.default_scope))))
        if cfg.default_scope == 'mmseg':
            assert theirs.pop('custom_hooks') == [dict(type='LabelCheckHook')]
        for config in (ours, theirs):
            for split in ('train', 'val', 'test'):
                config[f'{split}_dataloader']['dataset'].pop('data_root')
                config.get(f'{split}_evaluator', {}).pop('ann_file', None)
            for name in variables:
                config.pop(name, None)
        assert ours == theirs
    assert not shipped, 'there is a block of each'


@pytest.mark.parametrize('path', by_day(DIFFERENT))
def test_the_state_alone_is_spared_from_weight_decay(path):
    """Every other parameter has what upstream's constructor gives it; in layer-wise decay but for the rate."""
    cfg = parse(path)
    model = build_without_memory(cfg)
    options = cfg.optim_wrapper.setdefault('paramwise_cfg', {})
    found = settings(model, cfg)
    state = {id(p) for p in undecayed_parameters(model) if p.requires_grad}
    ends = ('A_log', 'dt_bias', 'initial_state', 'input_norm.weight')
    named = {id(p): name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert state == {key for key, name in named.items() if name.endswith(ends)} and len(state) > 3
    constructor = cfg.optim_wrapper.pop('constructor')
    if constructor == 'LearningRateDecayOptimizerConstructor':  # upstream's for ConvNeXt, which lets no vector decay
        decayed = {id(p) for p in model.parameters() if p.requires_grad and p.dim() > 1}
        assert decayed == {key for key, group in found.items() if group['weight_decay'] > 0} and not decayed & state
        return
    assert constructor.endswith('OptimWrapperConstructor')
    rate = options.pop('layer_decay_rate', None)
    expected = settings(model, cfg)
    for key, group in expected.items():
        assert cfg.optim_wrapper.optimizer.weight_decay > 0
        if key in state:
            group['weight_decay'] = 0.0
        if rate:
            group['lr'] = found[key]['lr']
    assert found == expected


@pytest.mark.parametrize(
    'name',
    [
        'mask2former/mask2former_s6la-swin-t_8xb2-lsj-50e_coco.py',
        'mask2former/mask2former_s6la-swin-t_8xb2-160k_ade20k-512x512.py',
        'segformer/segformer_s6la-swin-t_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_norms_and_positions_of_swin_do_not_decay(name):
    """Upstream's keys are for another Swin, whose parameters have the same names."""
    cfg = parse(ROOT / name)
    model = build_without_memory(cfg)
    found = settings(model, cfg)
    spared = re.compile(r'norm|relative_position_bias_table|A_log|dt_bias|initial_state')
    base, keys = cfg.optim_wrapper.optimizer, cfg.optim_wrapper.paramwise_cfg.custom_keys
    for key, parameter in model.backbone.named_parameters():
        group = found[id(parameter)]
        assert group['weight_decay'] == (0.0 if spared.search(key) else base.weight_decay), key
        assert group['lr'] == pytest.approx(base.lr * keys.get('backbone', {}).get('lr_mult', 1.0)), key


def test_the_state_learns_as_fast_as_the_heads_where_it_is_asked_to():
    """With the keys that the model zoo names."""
    cfg = parse(ROOT / 'dino/dino-4scale_s6la-r50_8xb2-12e_coco.py')
    page = (ROOT.parent / 'docs/model_zoo.md').read_text()
    keys = ('backbone.cells', 'backbone.initial_state', 'read.weight')
    assert all(f"`'{key}'`" in page for key in keys)
    cfg.optim_wrapper.paramwise_cfg.custom_keys.update({key: dict(lr_mult=1.0) for key in keys})
    model = build_without_memory(cfg)
    found = settings(model, cfg)
    rates = {name: found[id(p)]['lr'] for name, p in model.named_parameters() if p.requires_grad}
    fast = {name for name, rate in rates.items() if rate == cfg.optim_wrapper.optimizer.lr}
    assert {name for name in fast if name.startswith('backbone.')} == {
        name for name in rates if re.search(r'\.(cells|initial_state|read)\b', name)
    }
    assert {name for name in rates if not name.startswith('backbone.')} <= fast


def settings(model, cfg):
    """What the config's optimizer does with each parameter that learns."""
    groups = build_optimizer(model, cfg).optimizer.param_groups
    learning = ((p, group) for group in groups for p in group['params'] if p.requires_grad)
    return {id(p): {key: value for key, value in group.items() if key != 'params'} for p, group in learning}


@pytest.mark.parametrize('name', SHORTER)
def test_a_longer_schedule_trains_the_same_model(name):
    assert parse(ROOT / name).model == parse(ROOT / SHORTER[name]).model


@pytest.mark.parametrize('path', [path for path, name in zip(CONFIGS, IDS) if LARGER.search(name)])
def test_heads_take_the_features_of_a_larger_network(path):
    """At full width, without numbers: the step of the smaller one tells for the rest."""
    cfg = parse(path)
    model = build_without_memory(cfg).eval()
    head = next(filter(None, (getattr(model, name, None) for name in ('bbox_head', 'rpn_head', 'decode_head', 'head'))))
    size = (224, 224) if cfg.default_scope == 'mmpretrain' else (64, 96)
    with torch.device('meta'), torch.no_grad():
        assert head(model.extract_feat(torch.empty(1, 3, *size))) is not None


@pytest.mark.parametrize(
    'path', by_day([name for name in DIFFERENT if name not in SHORTER and not LARGER.search(name)])
)
def test_train_step_and_prediction(path):
    cfg, model, _ = train_step(path)
    check_prediction(cfg, model)


@pytest.mark.nightly
@pytest.mark.parametrize(
    'name',
    [
        'atss/atss_s6la-r50_fpn_1x_coco.py',
        'deformable_detr/deformable-detr-refine-twostage_s6la-r50_16xb2-50e_coco.py',
        'dino/dino-4scale_s6la-r50_8xb2-12e_coco.py',
        'mask2former/mask2former_s6la-swin-t_8xb2-lsj-50e_coco-panoptic.py',
        'mask2former/mask2former_s6la-r50_8xb2-160k_ade20k-512x512.py',
        'segformer/segformer_s6la-swin-t_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_train_step_in_mixed_precision(name):
    """In bfloat16, which has the range that a random network needs; mmcv's RoIAlign is not made for it."""
    with torch.autocast('cpu', torch.bfloat16):
        cfg, model, _ = train_step(ROOT / name)
        check_prediction(cfg, model)
