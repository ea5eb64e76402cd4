"""The analysis of the state: its figures are those of the formula."""

import math

import numpy as np
import pytest
import torch
from mmdet.models import ResNet
from tool_runner import load
from torch import nn

from s6la_mm.analysis.state import Regression, StateAnalysis
from s6la_mm.backbones import S6LAResNet, S6LAViT
from s6la_mm.common.errors import UsageError
from s6la_mm.layers import StateRead


def small(**options) -> S6LAResNet:
    torch.manual_seed(0)
    backbone = S6LAResNet(18, base_channels=8, state_dim=4, **options).eval()
    for module in backbone.modules():
        if isinstance(module, StateRead):
            nn.init.normal_(module.weight, std=0.1)
    return backbone


def look(backbone: nn.Module, *images: torch.Tensor) -> StateAnalysis:
    analysis = StateAnalysis(backbone)
    with analysis.watching(), torch.no_grad():
        for image in images:
            backbone(image)
    return analysis


def test_decays_of_constant_steps():
    """Without selection Δ is softplus(b_Δ), the decay exp(-(n + 1) Δ), and what is left a product of them."""
    backbone = small()
    for cell in backbone.cells.values():
        nn.init.zeros_(cell.dt_proj.weight)
        nn.init.constant_(cell.dt_bias, -1.0)
    analysis = look(backbone, torch.rand(1, 3, 64, 96))
    delta = torch.nn.functional.softplus(torch.tensor(-1.0))
    decay = torch.exp(-delta * torch.arange(1, 5))
    summary = analysis.summary()
    assert [write['cell'] for write in summary['writes']] == [f'cells.layer{i}' for i in (1, 1, 2, 2, 3, 3, 4)]
    for write in analysis.writes:
        torch.testing.assert_close(write.channel_decay[0], decay)
    retention = analysis.retention()
    for s in range(7):
        for t in range(7):
            expected = (decay ** (t - s)).mean() if t >= s else torch.tensor(torch.nan)
            torch.testing.assert_close(retention[t, s], expected, equal_nan=True)
    assert summary['writes'][6]['held'] == pytest.approx(sum(float((decay**k).mean()) for k in range(7)))
    assert summary['writes'][0]['delta'] == pytest.approx([float(delta)] * 5)


def test_share_of_what_is_read():
    """Of the first block, which reads the initial state, by hand."""
    backbone = small()
    backbone.initial_state.data.fill_(1.0)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        x = backbone.maxpool(backbone.relu(backbone.norm1(backbone.conv1(image))))
        block = backbone.layer1[0]
        own, read = block.conv1(x), block.read.contribution(torch.ones(1, 4, *x.shape[2:]))
    analysis = look(backbone, image)
    assert next(iter(analysis.reads)) == 'layer1.0.read' and len(analysis.reads) == 8
    assert analysis.reads['layer1.0.read'] == [pytest.approx(float(read.norm() / own.norm()), rel=1e-4)]


def test_watching_changes_nothing_and_ends():
    backbone, image = small(), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        before = backbone(image)
        analysis = StateAnalysis(backbone)
        with analysis.watching():
            within = backbone(image)
        backbone(image)
    assert all(torch.equal(a, b) for a, b in zip(before, within))
    assert len(analysis.writes[0].rms) == 1 and len(analysis.reads) == 8


def test_several_images_and_the_page(tmp_path):
    analysis = look(small(), torch.rand(1, 3, 64, 96), torch.rand(1, 3, 33, 47))
    assert [len(write.rms) for write in analysis.writes] == [2] * 7
    states = {1: analysis.writes[1].map, 6: analysis.writes[6].map}
    pixels = torch.zeros(33, 47, 3, dtype=torch.uint8).numpy()
    page = load('analysis_tools/analyze_state.py').write_state_page(
        analysis, [('a<b.png', pixels, states)], 'title', 'x.pth', str(tmp_path)
    )
    text = open(page).read()
    assert 'a&lt;b.png' in text and 'images: 2' in text
    for name in ('decay', 'delta', 'norms', 'retention', 'maps_0'):
        assert f'src="{name}.png"' in text and (tmp_path / f'{name}.png').stat().st_size > 5000


def test_what_is_new_of_the_state():
    """Against NumPy's least squares, over two images of different sizes."""
    backbone, images = small(), (torch.rand(1, 3, 96, 96), torch.rand(1, 3, 65, 129))
    pairs = []
    watched = backbone.cells['layer1'].register_forward_hook(
        lambda _, args, h: pairs.append([v.movedim(1, -1).flatten(0, 2).double().numpy() for v in (args[0], h)])
    )
    summary = look(backbone, *images).summary()
    watched.remove()
    x, h = (np.concatenate(parts) for parts in zip(*pairs[1::2]))  # the second write of each image
    ones = np.hstack((np.ones((len(x), 1)), x))
    rest = h - ones @ np.linalg.lstsq(ones, h, rcond=None)[0]
    expected = (rest**2).sum() / (len(x) - 9) / (((h - h.mean(0)) ** 2).sum() / (len(x) - 1))
    assert 0.01 < expected < 0.99
    assert summary['writes'][1]['new'] == pytest.approx(expected, rel=1e-6)
    assert summary['writes'][6]['new'] is None  # 64 channels, 9 + 15 pixels


def test_least_squares_of_noise_and_of_what_depends():
    torch.manual_seed(0)
    x, y = torch.rand(600, 20), torch.randn(600, 3)
    dead = torch.cat((x, torch.zeros(600, 2)), dim=1)  # channels that a ReLU has closed
    noise, exact = Regression(), Regression()
    for part in (slice(0, 100), slice(100, 600)):
        noise.add(dead[part], y[part])
        exact.add(dead[part], x[part] @ torch.rand(20, 3, generator=torch.Generator().manual_seed(1)) + 5)
    # 1 in the mean; a standard deviation of sqrt(2 / (3 * 580)) is 0.034
    assert noise.unexplained() == pytest.approx(1, abs=0.12)
    assert exact.unexplained() == pytest.approx(0, abs=1e-9)
    few = Regression()
    few.add(x[:30], y[:30])
    assert math.isnan(few.unexplained())


def test_tokens():
    """A transformer: the state has no map, and a reader at zero reads nothing."""
    arch = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
    backbone = S6LAViT(arch, img_size=32, out_type='featmap').eval()
    analysis = look(backbone, torch.rand(1, 3, 32, 32))
    assert analysis.writes and all(write.map is None for write in analysis.writes)
    assert list(analysis.reads.values()) == [[0.0]] * len(analysis.reads)
    assert analysis.retention().diagonal().eq(1).all()
    assert {write['new'] for write in analysis.summary()['writes']} == {None}


def test_more_samples_than_torch_sorts():
    analysis = look(small(), torch.rand(1, 3, 64, 96))
    analysis.writes[0].delta = [torch.linspace(0, 1, 2**24 + 1)]
    assert analysis.summary()['writes'][0]['delta'] == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.95], abs=1e-4)


def test_a_network_without_a_state():
    with pytest.raises(UsageError, match='ResNet carries no state'):
        StateAnalysis(ResNet(18))


def test_liveliest_channels():
    state = torch.stack((torch.full((4, 4), 9.0), torch.arange(16.0).view(4, 4), torch.eye(4)))
    assert load('analysis_tools/analyze_state.py').liveliest_channels(state, 2) == [2, 1]
