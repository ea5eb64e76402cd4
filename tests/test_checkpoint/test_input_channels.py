"""Weights of one number of input channels in a network for another."""

import pytest
import torch
from mmengine.registry import MODELS

from s6la_mm.backbones.families import FAMILIES
from s6la_mm.checkpoint.surgery import fit_input_channels, input_convolution
from s6la_mm.conversion.convert import convert_checkpoint

pytest.importorskip('mmpretrain')
SMALL_RESNET = dict(depth=18, base_channels=8, stem_channels=8)
NETWORKS = {
    **{family.name: (family.name, family.small) for family in FAMILIES},
    'deep stem': ('S6LAResNet', dict(SMALL_RESNET, deep_stem=True)),
    'RLAResNet': ('RLAResNet', dict(SMALL_RESNET, hidden_channels=4)),
    'MRLAResNet': ('MRLAResNet', dict(SMALL_RESNET, head_channels=8)),
}


def build(name, **options):
    kind, small = NETWORKS[name]
    return MODELS.build(dict(small, type=kind, **options))


@pytest.fixture(scope='module', params=NETWORKS)
def source(request, tmp_path_factory):
    """A network for RGB images, and its file."""
    network = build(request.param)
    path = str(tmp_path_factory.mktemp('rgb') / 'rgb.pth')
    torch.save(network.state_dict(), path)
    return request.param, network, path


@pytest.mark.parametrize('channels', [1, 4])
def test_starts_from_rgb(source, channels):
    """The first convolution is fitted, and all else is what it was; without the option the error names it."""
    name, rgb, path = source
    with pytest.raises(ValueError, match=r'adapt_channels=True in init_cfg.*, 3, .*against'):
        build(name, in_channels=channels, init_cfg=dict(type='Pretrained', checkpoint=path)).init_weights()
    start = dict(type='Pretrained', checkpoint=path, adapt_channels=True)
    network = build(name, in_channels=channels, init_cfg=start)
    network.init_weights()
    assert network.init_cfg == start
    stem, expected = f'{input_convolution(rgb)[0]}.weight', rgb.state_dict()
    expected[stem] = fit_input_channels(expected[stem], channels)
    torch.testing.assert_close(network.state_dict(), expected, rtol=0, atol=0)
    if channels == 1:  # a grey image is an RGB image of three equal channels
        images = torch.rand(1, 1, 64, 64)
        with torch.no_grad():
            outs, of_rgb = network.eval()(images), rgb.eval()(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(outs, of_rgb, rtol=1e-4, atol=1e-4)


def test_same_channels(source):
    """The option does nothing where nothing is to be done."""
    name, rgb, path = source
    network = build(name, init_cfg=dict(type='Pretrained', checkpoint=path, adapt_channels=True))
    network.init_weights()
    torch.testing.assert_close(network.state_dict(), rgb.state_dict(), rtol=0, atol=0)


def test_scale():
    """Equal channels, six of them, give what three gave."""
    weight, images = torch.randn(4, 3, 3, 3), torch.rand(1, 1, 8, 8)
    expected = torch.conv2d(images.expand(-1, 3, -1, -1), weight)
    torch.testing.assert_close(torch.conv2d(images.expand(-1, 6, -1, -1), fit_input_channels(weight, 6)), expected)


def test_converter(saved, tmp_path):
    """It says what was done, and verifies all but that."""
    from checkpoint_sources import VIT, make_source

    source, out = saved(make_source('timm ViT')[1]), str(tmp_path / 'out.pth')
    to = dict(arch='s6la_deit_ti', adapt_channels=True, verify=True)
    done = convert_checkpoint(source, out, options=dict(VIT, in_channels=4), **to)
    assert done.difference < 1e-5
    (entry,) = (entry for entry in done.match.entries if 'input channels' in entry.note)
    assert entry.target == 'patch_embed.projection.weight' and entry.note.endswith('3 input channels made 4')
    assert convert_checkpoint(out, str(tmp_path / 'rgb.pth'), options=VIT, **to).difference < 1e-5
