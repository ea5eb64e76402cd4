"""Layer-wise learning-rate decay: each parameter's rate, and everything else as ``S6LAOptimWrapperConstructor``."""

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from s6la_mm.backbones import S6LAViT

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(16, 2)


def groups(model, **paramwise):
    cfg = dict(
        constructor='LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
        paramwise_cfg=paramwise,
    )
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(g['params'][0])]: g for g in build_optim_wrapper(model, cfg).optimizer.param_groups}


def test_rates_and_decays():
    model = Detector(S6LAViT(ARCH, img_size=32, out_type='featmap'))
    model.backbone.layers[0].ln1.requires_grad_(False)
    found = groups(
        model,
        layer_decay_rate=0.5,
        flat_decay_mult=0.0,
        custom_keys={'head': dict(lr_mult=10.0)},
    )
    assert len(found) == len(list(model.parameters())) - 2
    expected = {
        'backbone.pos_embed': 0.5**4,
        'backbone.initial_state': 0.5**4,
        'backbone.layers.0.attn.qkv.weight': 0.5**3,
        'backbone.layers.0.read.weight': 0.5**3,
        'backbone.layers.2.read.weight': 0.5,
        'backbone.cells.0.A_log': 0.5,
        'head.weight': 10.0,
    }
    assert {name: found[name]['lr'] for name in expected} == expected
    assert found['backbone.cells.0.A_log']['weight_decay'] == found['backbone.initial_state']['weight_decay'] == 0
    assert found['backbone.layers.0.read.weight']['weight_decay'] == 0.1


@pytest.mark.parametrize('rate', [None, 0, 1.5])
def test_wrong_rate(rate):
    with pytest.raises(ValueError, match=f'layer_decay_rate={rate} '):
        groups(Detector(nn.Linear(2, 2)), layer_decay_rate=rate)


def test_backbone_without_depths():
    with pytest.raises(ValueError, match='Linear has none'):
        groups(Detector(nn.Linear(2, 2)), layer_decay_rate=0.5)
