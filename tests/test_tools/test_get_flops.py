"""tools/analysis_tools/get_flops.py."""

from __future__ import annotations

import pytest
from config_steps import build, parse
from mmengine.config import Config
from tool_runner import ROOT, call, check

from s6la_mm.analysis.flops import count_flops
from s6la_mm.common.configs import build_model


def test_get_flops_counts_every_part():
    config = ROOT / 'configs/mask_rcnn/mask-rcnn_s6la-r50_fpn_1x_coco.py'
    lines = check(call('analysis_tools/get_flops.py', config, '--shape', 224)).splitlines()
    rows = {line[:16].strip(): line[16:].replace(' M', '').split() for line in lines}
    parts = {name: (float(rows[name][0]), float(rows[name][1])) for name in ('backbone', 'of it S6LA', 'whole model')}
    assert parts['backbone'][0] == pytest.approx(23.508 + 0.252, abs=1e-3)
    assert parts['of it S6LA'][0] == pytest.approx(0.252, abs=1e-3)
    # ResNet-50 without its classifier has 4.09 G multiply-adds at 224 × 224 (He et al.: 3.8 in the caffe style).
    assert parts['backbone'][1] - parts['of it S6LA'][1] == pytest.approx(4.09, abs=0.02)
    heads = sum(float(rows[name][1]) for name in ('backbone', 'neck', 'rpn_head', 'roi_head'))
    assert heads == pytest.approx(parts['whole model'][1], abs=0.05)


def test_get_flops_of_a_transformer():
    """Plain network and S6LA add up to the backbone; attention, which the CPU fuses, is in both."""
    arch = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
    options = dict(arch=arch, img_size=64, with_cls_token=False, out_type='featmap', _scope_='mmpretrain')
    rows = {}
    for name, extra in (('VisionTransformer', {}), ('S6LAViT', dict(state_dim=4))):
        config = Config(dict(model=dict(type='ImageClassifier', backbone=dict(type=name, **options, **extra))))
        config.default_scope = 'mmpretrain'
        rows[name] = {row[0].strip(): row[1:] for row in count_flops(build_model(config), 64, 48)}
    plain, backbone, state = (
        rows['VisionTransformer']['backbone'],
        rows['S6LAViT']['backbone'],
        rows['S6LAViT']['of it S6LA'],
    )
    assert [a + b for a, b in zip(plain, state)] == [*backbone]
    tokens = 12
    attention = 2 * tokens**2 * 32
    assert plain[1] == tokens * 3 * 16**2 * 32 + 3 * (tokens * (4 * 32**2 + 2 * 32 * 64) + attention)
    # Per block W_Δ and W_B of the summary token, and every token's read: W_C and the product with the state.
    update = 3 * (32 * 32 + 32 * 4 + 2 * tokens * 32 * 4)
    assert 0 <= state[1] - update <= 3 * 8 * 32 * 4


@pytest.mark.parametrize(
    ('name', 'parts'),
    [
        ('dino/dino-4scale_s6la-r50_8xb2-12e_coco.py', ['neck', 'encoder', 'decoder', 'memory_trans_fc']),
        ('sparse_rcnn/sparse-rcnn_s6la-r50_fpn_1x_coco.py', ['neck', 'roi_head']),
        ('mask2former/mask2former_s6la-r50_8xb2-160k_ade20k-512x512.py', ['decode_head']),
    ],
)
def test_heads_that_ask_for_more_than_images(name, parts):
    """Where an image ends, objects to match, what MMSegmentation hands to a head of MMDetection."""
    cfg = parse(ROOT / 'configs' / name)
    rows = {row[0].strip(): row[1:] for row in count_flops(build(cfg).eval().requires_grad_(False), 64, 96)}
    assert all(rows[part][1] > 0 for part in ('backbone', 'of it S6LA', *parts))
    rest = rows['whole model'][1] - sum(rows[part][1] for part in ('backbone', *parts))
    if parts == ['decode_head']:  # the scores of the queries times their masks, behind the forward of the head
        assert rest == 150 * 20 * 64 * 96
    assert 0 <= rest < 0.2 * rows['whole model'][1]


def test_get_flops_default_shape():
    """That of the config's scope, and as many channels as the backbone takes."""
    config = ROOT / 'configs/imagenet/s6la-pvtv2-b0_8xb128_in1k.py'
    output = check(call('analysis_tools/get_flops.py', config, '--cfg-options', 'model.backbone.in_channels=5'))
    assert 'one image of 224 × 224, 5 channels' in output


def test_get_flops_names_wrong_input():
    done = call('analysis_tools/get_flops.py', 'configs/nothing.py')
    assert done.returncode == 1 and 'configs/nothing.py' in done.stderr and 'Traceback' not in done.stderr
    done = call('analysis_tools/get_flops.py', 'configs/nothing.py', '--shape', 0)
    assert done.returncode == 2 and '--shape' in done.stderr
