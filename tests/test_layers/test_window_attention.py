"""Windowed attention: each window gives what attention over its part of the map alone gives, for any size."""

import pytest
import torch

from s6la_mm.layers.window_attention import attend_in_windows

MultiheadAttention = pytest.importorskip('mmpretrain.models.utils').MultiheadAttention


@pytest.mark.parametrize('hw', [(4, 6), (5, 7), (1, 3), (2, 2), (3, 1), (9, 4)])
@pytest.mark.parametrize('window_size', [1, 2, 3, 10])
def test_windows_are_attended_one_by_one(hw, window_size):
    torch.manual_seed(0)
    attn = MultiheadAttention(8, num_heads=2, layer_scale_init_value=0.3).double().eval()
    x = torch.randn(2, hw[0] * hw[1], 8, dtype=torch.float64)
    maps = x.view(2, *hw, 8)
    expected = torch.empty_like(maps)
    for top in range(0, hw[0], window_size):
        for left in range(0, hw[1], window_size):
            window = (slice(None), slice(top, top + window_size), slice(left, left + window_size))
            part = maps[window]
            expected[window] = attn(part.flatten(1, 2)).view_as(part)
    actual = attend_in_windows(attn, x, hw, window_size)
    torch.testing.assert_close(actual, expected.flatten(1, 2), rtol=1e-10, atol=1e-10)


def test_drop_path_drops_images_not_windows():
    torch.manual_seed(0)
    attn = MultiheadAttention(8, num_heads=2, dropout_layer=dict(type='DropPath', drop_prob=0.5)).train()
    out = attend_in_windows(attn, torch.randn(64, 20, 8), (4, 5), 2)
    dropped = out.eq(0).all(dim=2)
    assert 0 < dropped.all(dim=1).sum() == dropped.any(dim=1).sum() < 64


def test_gradients_are_finite_and_reach_everything():
    torch.manual_seed(0)
    attn = MultiheadAttention(8, num_heads=2)
    x = torch.randn(2, 15, 8, requires_grad=True)
    attend_in_windows(attn, x, (3, 5), 2).square().mean().backward()
    for tensor in (x, *attn.parameters()):
        assert tensor.grad.isfinite().all() and tensor.grad.ne(0).any()
