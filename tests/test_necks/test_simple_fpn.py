"""SimpleFPN: shapes at any size, its levels by hand, and that a detector's scope builds it."""

import sys

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from s6la_mm.necks import SimpleFPN

GN = dict(type='GN', num_groups=1)


@pytest.mark.parametrize('size', [(14, 14), (3, 5), (1, 4), (1, 1)])
@pytest.mark.parametrize('num_outs', [4, 6])
def test_shapes_and_gradients(size, num_outs):
    neck = SimpleFPN(8, out_channels=6, num_outs=num_outs, norm_cfg=GN)
    outs = neck((None, torch.randn(2, 8, *size)))
    shapes = [[factor * n for n in size] for factor in (4, 2, 1)]
    while len(shapes) < num_outs:
        shapes.append([-(-n // 2) for n in shapes[-1]])
    assert [out.shape for out in outs] == [(2, 6, *shape) for shape in shapes]
    generator = torch.Generator().manual_seed(0)
    sum((out * torch.randn(out.shape, generator=generator)).mean() for out in outs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())


def test_levels_are_those_of_vitdet():
    """By hand, with torch's layer norm over channels."""
    pytest.importorskip('mmpretrain')
    torch.manual_seed(0)
    neck = SimpleFPN(8, out_channels=6, num_outs=5)
    for parameter in neck.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 8, 5, 7)

    def norm(layer, maps):
        assert layer.eps == 1e-6
        maps = maps.movedim(1, -1)
        return nn.functional.layer_norm(maps, maps.shape[-1:], layer.weight, layer.bias, 1e-6).movedim(-1, 1)

    first, gain, _, second = neck.scales[0]
    scaled = [second(nn.functional.gelu(norm(gain, first(x)))), neck.scales[1](x), x]
    scaled.append(nn.functional.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1), value=-1e9), 2))
    outs = neck([x])
    for out, level, (lateral, output) in zip(outs, scaled, neck.convs):
        assert lateral.conv.bias is None and lateral.conv.kernel_size == (1, 1) and output.conv.kernel_size == (3, 3)
        expected = norm(output.norm, output.conv(norm(lateral.norm, lateral.conv(level))))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outs[4], outs[3][..., ::2, ::2])


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet'])
def test_builds_under_a_detectors_scope(scope):
    pytest.importorskip('mmpretrain')
    registry = MODELS if scope == 'mmengine' else pytest.importorskip(f'{scope}.registry').MODELS
    with DefaultScope.overwrite_default_scope(scope):
        assert type(registry.build(dict(type='SimpleFPN', in_channels=8))) is SimpleFPN


def test_without_mmpretrain(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    SimpleFPN(8, norm_cfg=GN)
    with pytest.raises(ImportError, match=r'SimpleFPN with norm_cfg=.*LN2d.* needs mmpretrain.*pip .*mmpretrain'):
        SimpleFPN(8)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(in_channels=6), 'in_channels=6.*multiple of 4'),
        (dict(in_channels=8, num_outs=3), 'num_outs=3.*4 or more'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        SimpleFPN(**options)
