"""The map cell against a float64 oracle of the formula, its initialisation, the split read, the pooling."""

import itertools
import math

import pytest
import torch
from mmengine.model import BaseModule, Sequential
from op_inputs import EPS, oracle_update
from releases import HALF_ON_CPU
from torch import nn
from torch.nn.utils import prune

from s6la_mm.layers import S6LAMapCell, StateRead, pool_state
from s6la_mm.ops import DISCRETIZATIONS

INPUT_NORMS = ['rms', None]
KAIMING = [
    dict(type='Kaiming', layer='Conv2d'),
    dict(type='Constant', val=3, layer=['RMSNorm', 'S6LAMapCell']),
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """init_weights of a root module logs one line per parameter."""
    monkeypatch.setattr(BaseModule, '_dump_init_info', lambda self: None)


def make_cell(channels=6, state_dim=4, seed=0, **options):
    """A cell none of whose parameters has a special value: gains differ from 1, steps are large."""
    torch.manual_seed(seed)
    cell = S6LAMapCell(channels, state_dim, **options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return cell


def make_maps(batch=2, channels=6, state_dim=4, size=(3, 2), seed=1, **options):
    torch.manual_seed(seed)
    return torch.randn(batch, channels, *size, **options), torch.randn(batch, state_dim, *size, **options)


def oracle_cell(cell, x, h):
    """The write step of docs/definition.md in float64; W · is written as a sum over channels, not as a convolution."""
    weight = {name: p.detach().double() for name, p in cell.named_parameters()}

    def project(name, maps):
        return torch.einsum('nd,bdhw->bnhw', weight[f'{name}_proj.weight'][:, :, 0, 0], maps)

    u = project('in', x.detach().double())
    if cell.input_norm is not None:
        rms = (u.square().mean(dim=1, keepdim=True) + EPS[torch.float32]).sqrt()
        u = u / rms * weight['input_norm.weight'].view(1, -1, 1, 1)
    return oracle_update(
        h,
        u,
        project('dt', u),
        -weight['A_log'].exp(),
        project('B', u),
        dt_bias=weight['dt_bias'],
        dt_softplus=True,
        discretization=cell.discretization,
    )


@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize('input_norm', INPUT_NORMS)
def test_cell_equals_oracle(discretization, input_norm):
    cell = make_cell(discretization=discretization, input_norm=input_norm)
    x, h = make_maps()
    actual = cell(x, h)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), oracle_cell(cell, x, h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize('input_norm', INPUT_NORMS)
def test_float64_cell_computes_in_float64(discretization, input_norm):
    cell = make_cell(discretization=discretization, input_norm=input_norm).double()
    x, h = make_maps(dtype=torch.float64)
    actual = cell(x, h)
    assert actual.dtype == torch.float64
    # The norm's eps is left open and depends on the dtype, so only the cell without norm is exact.
    tolerance = 1e-12 if input_norm is None else 1e-6
    torch.testing.assert_close(actual, oracle_cell(cell, x, h), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('dtype', [HALF_ON_CPU, torch.bfloat16])
@pytest.mark.parametrize('input_norm', INPUT_NORMS)
def test_half_cell(dtype, input_norm):
    """A model cast as a whole (``model.half()``), without autocast."""
    cell = make_cell(input_norm=input_norm)
    x, h = make_maps()
    expected = oracle_cell(cell, x, h)
    actual = cell.to(dtype)(x.to(dtype), h.to(dtype))
    assert actual.dtype == dtype
    assert (actual.double() - expected).norm() < 10 * EPS[dtype] * expected.norm()


@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize('input_norm', INPUT_NORMS)
def test_bf16_autocast_is_close_and_keeps_the_state_in_float32(discretization, input_norm):
    cell = make_cell(16, 8, discretization=discretization, input_norm=input_norm)
    x, h = make_maps(channels=16, state_dim=8, size=(7, 5))
    expected = cell(x, h)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = cell(x.bfloat16(), h)
        actual.square().mean().backward()
    assert actual.dtype == torch.float32
    error = (actual - expected).norm() / expected.norm()
    assert 0 < error < 10 * EPS[torch.bfloat16]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in cell.parameters())


@pytest.mark.parametrize('input_norm', INPUT_NORMS)
def test_every_parameter_gets_a_gradient(input_norm):
    cell = make_cell(input_norm=input_norm)
    x, h = make_maps(requires_grad=True)
    cell(x, h).square().mean().backward()
    for name, tensor in [*cell.named_parameters(), ('x', x), ('h', h)]:
        assert tensor.grad is not None and tensor.grad.ne(0).any(), name


def test_norm_bounds_what_large_features_write():
    """B ⊙ u is quadratic in the features without the norm; with it, their scale does not reach the state."""
    x, h = make_maps()
    cell = make_cell()
    torch.testing.assert_close(cell(1e4 * x, h), cell(x, h), rtol=1e-4, atol=1e-4)
    free = make_cell(input_norm=None)
    assert free(1e4 * x, h).abs().max() > 1e6 * free(x, h).abs().max()


def test_zero_input_is_finite_and_only_decays_the_state():
    cell = make_cell()
    _, h = make_maps()
    x = torch.zeros(2, 6, 3, 2, requires_grad=True)
    out = cell(x, h)
    decay = (-cell.A_log.exp() * nn.functional.softplus(cell.dt_bias)).exp().view(1, -1, 1, 1)
    torch.testing.assert_close(out, decay * h)
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_pixels_are_independent():
    cell = make_cell()
    x, h = make_maps(size=(4, 5))
    permutation = torch.randperm(20)

    def shuffled(maps):
        return maps.flatten(2)[..., permutation].view_as(maps)

    torch.testing.assert_close(cell(shuffled(x), shuffled(h)), shuffled(cell(x, h)), rtol=1e-6, atol=1e-6)


def test_expanded_state_and_channels_last():
    cell = make_cell()
    x, h = make_maps()
    row = h[:1, :, :1, :1]
    torch.testing.assert_close(cell(x, row.expand_as(h)), cell(x, row.repeat(2, 1, 3, 2)), rtol=0, atol=0)
    last = dict(memory_format=torch.channels_last)
    torch.testing.assert_close(make_cell().to(**last)(x.to(**last), h.to(**last)), cell(x, h))


def test_single_channel_state_and_empty_batch():
    x, h = make_maps(state_dim=1)
    torch.testing.assert_close(
        make_cell(state_dim=1)(x, h).double(), oracle_cell(make_cell(state_dim=1), x, h), rtol=1e-5, atol=1e-5
    )
    assert make_cell()(torch.zeros(0, 6, 3, 2), torch.zeros(0, 4, 3, 2)).shape == (0, 4, 3, 2)


def check_state_parameters(cell, low, high):
    """A_n = −(n + 1), and log softplus(b_Δ) uniform: its empirical distribution is near the line."""
    n = cell.A_log.numel()
    torch.testing.assert_close(-cell.A_log.detach().exp(), -torch.arange(1.0, n + 1), rtol=1e-5, atol=0)
    dt = nn.functional.softplus(cell.dt_bias.detach().double())
    assert dt.min() >= low * (1 - 1e-4) and dt.max() <= high * (1 + 1e-4)
    quantile = ((dt / low).log() / math.log(high / low)).sort().values
    # 1.63 / √n is what a right distribution exceeds once in a hundred seeds.
    assert (quantile - torch.arange(n) / n).abs().max() < 1.63 / math.sqrt(n)


@pytest.mark.parametrize('dt_range', [(1e-3, 1e-1), (1e-6, 30.0)])
@pytest.mark.parametrize('init_weights', [False, True])
def test_initialisation(dt_range, init_weights):
    torch.manual_seed(0)
    cell = S6LAMapCell(2, 1500, dt_range=dt_range)
    if init_weights:
        nn.init.zeros_(cell.A_log)
        nn.init.zeros_(cell.dt_bias)
        cell.init_weights()
    check_state_parameters(cell, *dt_range)


def test_default_dt_range_is_the_specified_one():
    torch.manual_seed(0)
    check_state_parameters(S6LAMapCell(2, 1000), 1e-3, 1e-1)


def test_init_weights_of_a_parent_does_not_overwrite_the_cell():
    torch.manual_seed(0)
    root = Sequential(nn.Conv2d(64, 64, 3), S6LAMapCell(64, 256), init_cfg=KAIMING)
    cell = root[1]
    nn.init.constant_(cell.A_log, 7)
    nn.init.constant_(cell.dt_bias, 7)
    root.init_weights()
    check_state_parameters(cell, 1e-3, 1e-1)
    assert cell.input_norm.weight.eq(1).all()
    # PyTorch's own initialisation: uniform within 1/√fan_in, where Kaiming's normal for ReLU goes beyond.
    for name, fan_in in dict(in_proj=64, dt_proj=256, B_proj=256).items():
        weight = getattr(cell, name).weight
        assert 0.95 / math.sqrt(fan_in) < weight.abs().max() <= 1 / math.sqrt(fan_in), name
    # The parent's init_cfg reached what it is meant for: Kaiming (fan_out, ReLU) on the plain convolution.
    assert root[0].weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)


def test_readers_start_at_zero_and_a_parent_leaves_them_there():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert StateRead(4, conv).weight.eq(0).all()
    root = Sequential(conv, Sequential(StateRead(4, conv)), init_cfg=KAIMING)
    nn.init.ones_(root[1][0].weight)
    root.init_weights()
    assert root[1][0].weight.eq(0).all() and root[1][0].weight.requires_grad
    assert conv.weight.ne(0).all()


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('size', [(6, 8), (7, 5), (1, 3)])
def test_split_read_equals_convolution_of_the_concatenation(kernel_size, stride, dilation, size):
    torch.manual_seed(0)
    padding = dilation * (kernel_size // 2)
    conv1 = nn.Conv2d(5, 7, kernel_size, stride, padding, dilation, bias=False).double()
    read = StateRead(3, conv1).double()
    nn.init.normal_(read.weight)
    joint = nn.Conv2d(8, 7, kernel_size, stride, padding, dilation, bias=False).double()
    joint.weight.data = torch.cat([conv1.weight.data, read.weight.data], dim=1)
    x, h = make_maps(channels=5, state_dim=3, size=size, dtype=torch.float64)
    assert read.bias is None
    torch.testing.assert_close(conv1(x) + read(h), joint(torch.cat([x, h], dim=1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('grad', [True, False])
def test_adding_a_read(memory_format, kernel_size, grad):
    """The matrix product of inference and the convolution of training, on any layout of the state."""
    torch.manual_seed(0)
    conv1 = nn.Conv2d(5, 7, kernel_size, padding=kernel_size // 2, bias=False).double()
    read = StateRead(3, conv1).double()
    nn.init.normal_(read.weight)
    x, h = make_maps(channels=5, state_dim=3, size=(4, 6), dtype=torch.float64)
    expected = conv1(x) + nn.functional.conv2d(h, read.weight, padding=kernel_size // 2)
    for state in (h, h.to(memory_format=torch.channels_last), h.transpose(2, 3).contiguous().transpose(2, 3)):
        out = conv1(x).detach().to(memory_format=memory_format)
        with torch.set_grad_enabled(grad):
            added = read(state, out=out)
        assert added.requires_grad == grad
        assert (added.data_ptr() == out.data_ptr()) == (kernel_size == 1 and not grad)
        torch.testing.assert_close(added, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_projecting_with_the_next_convolution(memory_format):
    """In training one convolution gives both results, and the gradients of the two."""
    torch.manual_seed(0)
    cell, conv = S6LAMapCell(5, 3).double(), nn.Conv2d(5, 7, 1, bias=False).double()
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    leaves = (x, conv.weight, cell.in_proj.weight)
    results, gradients = [], []
    for out, u in (cell.project_with(conv, x), (conv(x), cell.in_proj(x))):
        results.append((out, u))
        gradients.append(torch.autograd.grad(out.square().sum() + u.exp().sum(), leaves))
    u = results[0][1]
    assert u.is_contiguous(memory_format=memory_format) and u.untyped_storage().nbytes() == u.numel() * 8
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert cell.eval().project_with(conv, x) == (None, None)


@pytest.mark.parametrize('options', [dict(kernel_size=3), dict(stride=2), dict(bias=True), dict(groups=5)], ids=str)
def test_what_is_not_projected_together(options):
    cell = S6LAMapCell(5, 3)
    options = dict(kernel_size=1, bias=False) | options
    x = torch.randn(1, 5, 8, 8)
    assert cell.project_with(nn.Conv2d(5, 10, **options), x) == (None, None)
    conv = nn.Conv2d(5, 10, 1, bias=False)
    assert cell.project_with(conv, x) != (None, None)
    assert cell.project_with(conv, x[..., :7, :7]) == (None, None)  # 245 numbers, and 65 weights
    assert cell.project_with(nn.utils.parametrizations.weight_norm(conv), x) == (None, None)
    frozen = nn.Conv2d(5, 10, 1, bias=False).requires_grad_(False)
    assert cell.project_with(frozen, x) == (None, None)
    pruned = prune.l1_unstructured(nn.Conv2d(5, 10, 1, bias=False), 'weight', 0.5)  # by a hook of its forward
    assert cell.project_with(pruned, x) == (None, None)


@pytest.mark.parametrize('stride', [1, 2, 4])
@pytest.mark.parametrize('kernel_size', [1, 3, 7, None])
def test_pooled_state_has_the_size_of_a_strided_convolution(stride, kernel_size):
    """With padding, or (None) patches side by side and nothing of the rest."""
    padded = kernel_size is not None
    conv = nn.Conv2d(1, 1, kernel_size, stride, kernel_size // 2) if padded else nn.Conv2d(1, 1, stride, stride)
    smallest = 1 if padded else stride
    for height, width in itertools.product(range(smallest, 10), range(smallest, 10)):
        maps = torch.ones(1, 1, height, width)
        pooled = pool_state(maps, stride, padded)
        assert pooled.shape == conv(maps).shape
        # Windows are cut at the border, not filled with zeros.
        torch.testing.assert_close(pooled, torch.ones_like(pooled))


@pytest.mark.parametrize('stride', [1, 2, 4])
@pytest.mark.parametrize(
    ('size', 'padded'), [((8, 12), True), ((7, 5), True), ((1, 9), True), ((1, 1), True), ((7, 5), False)]
)
def test_pooled_state_is_the_mean_of_its_windows(stride, size, padded):
    h = make_maps(size=size)[1]
    pooled = pool_state(h, stride, padded)
    for row, column in itertools.product(*(range(n) for n in pooled.shape[2:])):
        window = h[..., row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
        torch.testing.assert_close(pooled[..., row, column], window.mean(dim=(2, 3)))


def test_pooled_state_of_even_size_is_the_plain_average():
    h = make_maps(size=(6, 10))[1]
    expected = h.view(2, 4, 3, 2, 5, 2).mean(dim=(3, 5))
    torch.testing.assert_close(pool_state(h, 2), expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(state_dim=0), 'state_dim=0.*positive integer'),
        (dict(state_dim=-3), 'state_dim=-3.*positive integer'),
        (dict(state_dim=2.5), r'state_dim=2\.5.*positive integer'),
        (dict(discretization='bilinear'), "discretization='bilinear'.*euler.*zoh"),
        (dict(discretization=None), 'discretization=None.*euler.*zoh'),
        (dict(input_norm='layer'), "input_norm='layer'.*rms.*None"),
        (dict(dt_range=(0.1, 0.001)), r'dt_range=\(0\.1, 0\.001\).*positive.*smaller one first'),
        (dict(dt_range=(0.0, 0.1)), r'dt_range=\(0\.0, 0\.1\).*positive'),
        (dict(dt_range=0.1), r'dt_range=0\.1.*two positive numbers'),
        (dict(dt_range=(0.1,)), r'dt_range=\(0\.1,\).*two positive numbers'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        S6LAMapCell(4, **options)
