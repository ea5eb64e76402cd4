"""mmseg's two dilation options in S6LAResNet: mmseg's network with readers at zero, and a state that follows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')

from mmseg.models.backbones import ResNetV1c

from s6la_mm.backbones import S6LAResNet
from s6la_mm.layers import StateRead

D8 = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
CASES = {
    'r50-d8': dict(depth=50, contract_dilation=True, **D8),
    'r18-d8': dict(depth=18, contract_dilation=True, **D8),
    'r50-d16-mg124': dict(
        depth=50, contract_dilation=True, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(1, 2, 4)
    ),
    'r18-mg': dict(depth=18, multi_grid=(1, 3), **D8),
}


@pytest.mark.parametrize('name', CASES)
def test_readers_at_zero_give_mmsegs_network(name):
    options = dict(CASES[name], base_channels=8, stem_channels=8)
    torch.manual_seed(0)
    plain = ResNetV1c(**options)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    s6la = S6LAResNet(deep_stem=True, state_dim=4, norm_eval=False, **options)
    missing, unexpected = s6la.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith(('cells.', 'initial_state')) or '.read.' in key for key in missing)
    plain.eval()
    s6la.eval()
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        outs, expected = s6la(x), plain(x)
        for out, e in zip(outs, expected):
            torch.testing.assert_close(out, e, rtol=1e-5, atol=1e-6)
        nn.init.normal_(s6la.initial_state)  # zeros would leave the first read unseen
        # Every read has the dilation of the convolution beside it, and each of them is seen in the output.
        for block in (b for layer in s6la.res_layers for b in getattr(s6la, layer)):
            assert block.read.weight.shape[2:] == block.conv1.weight.shape[2:]
            nn.init.normal_(block.read.weight, std=0.3)
            assert (s6la(x)[-1] - expected[-1]).abs().max() > 1e-5 * expected[-1].abs().max()
            nn.init.zeros_(block.read.weight)


def test_without_them_it_is_another_network():
    """A test of the test: the first blocks' dilations matter."""
    dilations = [
        [b.conv2.dilation[0] for b in S6LAResNet(depth=50, base_channels=8, contract_dilation=c, **D8).layer4]
        for c in (True, False)
    ]
    assert dilations == [[2, 4, 4], [4, 4, 4]]


def test_state_keeps_the_resolution_of_dilated_stages():
    network = S6LAResNet(depth=18, base_channels=8, contract_dilation=True, out_state=True, **D8).eval()
    reads = [m for m in network.modules() if isinstance(m, StateRead)]
    assert len(reads) == 8
    with torch.no_grad():
        *maps, state = network(torch.randn(1, 3, 65, 97))
    assert [tuple(m.shape[2:]) for m in maps] == [(17, 25), (9, 13), (9, 13), (9, 13)]
    assert state.shape[2:] == maps[-1].shape[2:]


@pytest.mark.parametrize('grid', [(1, 2), (1, 2, 0), 4])
def test_wrong_multi_grid(grid):
    with pytest.raises(ValueError, match=r'multi_grid=.* 3 positive dilations'):
        S6LAResNet(depth=50, multi_grid=grid)
