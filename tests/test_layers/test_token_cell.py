"""The token cell, its read and its carry against float64 oracles of the formulas, and their initialisation."""

import math

import pytest
import torch
from mmengine.model import BaseModule, Sequential
from op_inputs import EPS, oracle_update
from releases import HALF_ON_CPU
from torch import nn

from s6la_mm.layers import S6LATokenCell, StateCarry, TokenRead, summary_token
from s6la_mm.ops import DISCRETIZATIONS

INPUT_NORMS = ['rms', None]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """init_weights of a root module logs one line per parameter."""
    monkeypatch.setattr(BaseModule, '_dump_init_info', lambda self: None)


def make_cell(channels=6, state_dim=4, **options):
    """A cell none of whose parameters has a special value: gains differ from 1, steps are large."""
    torch.manual_seed(0)
    cell = S6LATokenCell(channels, state_dim, **options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return cell


def make_inputs(batch=3, channels=6, state_dim=4, **options):
    torch.manual_seed(1)
    return torch.randn(batch, channels, **options), torch.randn(batch, channels, state_dim, **options)


def oracle_cell(cell, o, h):
    """The write step of docs/definition.md in float64."""
    weight = {name: p.detach().double() for name, p in cell.named_parameters()}
    u = o.detach().double()
    if cell.input_norm is not None:
        u = u / (u.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * weight['input_norm.weight']
    dt, B = (torch.einsum('nd,bd->bn', weight[f'{name}_proj.weight'], u) for name in ('dt', 'B'))
    options = dict(dt_bias=weight['dt_bias'], dt_softplus=True, discretization=cell.discretization)
    return oracle_update(h, u, dt, -weight['A_log'].exp(), B, **options)


@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize('input_norm', INPUT_NORMS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_cell_equals_oracle(discretization, input_norm, dtype):
    cell = make_cell(discretization=discretization, input_norm=input_norm).to(dtype)
    o, h = make_inputs(dtype=dtype)
    actual = cell(o, h)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(actual.double(), oracle_cell(cell, o, h), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('dtype', [HALF_ON_CPU, torch.bfloat16])
@pytest.mark.parametrize('input_norm', INPUT_NORMS)
def test_half_cell_and_read(dtype, input_norm):
    """A model cast as a whole (``model.half()``), without autocast."""
    cell = make_cell(input_norm=input_norm)
    o, h = make_inputs()
    expected = oracle_cell(cell, o, h)
    actual = cell.to(dtype)(o.to(dtype), h.to(dtype))
    assert actual.dtype == dtype
    assert (actual.double() - expected).norm() < 10 * EPS[dtype] * expected.norm()
    assert make_read().to(dtype)(torch.rand(3, 5, 6, dtype=dtype), h.to(dtype)).dtype == dtype


@pytest.mark.parametrize('input_norm', INPUT_NORMS)
def test_bf16_autocast_is_close_and_keeps_state_and_residual_in_float32(input_norm):
    cell, read, carry = make_cell(16, 8, input_norm=input_norm), make_read(16, 8), StateCarry(16, 24)
    o, h = make_inputs(channels=16, state_dim=8)
    x = torch.randn(3, 5, 16)

    def run():
        state = cell(o, h)
        return state, read(x, state, 1), carry(state)

    expected = run()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = run()
        sum(out.square().mean() for out in actual).backward()
    for a, e in zip(actual, expected):
        assert a.dtype == torch.float32
        assert 0 < (a - e).norm() < 10 * EPS[torch.bfloat16] * e.norm()
    for module in (cell, read, carry):
        assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in module.parameters())


@pytest.mark.parametrize('input_norm', INPUT_NORMS)
def test_every_parameter_gets_a_gradient(input_norm):
    cell = make_cell(input_norm=input_norm)
    o, h = make_inputs(requires_grad=True)
    cell(o, h).square().mean().backward()
    for name, tensor in [*cell.named_parameters(), ('o', o), ('h', h)]:
        assert tensor.grad is not None and tensor.grad.ne(0).any(), name


def test_norm_bounds_what_large_features_write():
    """B[n] o[d] is quadratic in the features without the norm; with it, their scale does not reach the state."""
    o, h = make_inputs()
    cell = make_cell()
    torch.testing.assert_close(cell(1e4 * o, h), cell(o, h), rtol=1e-4, atol=1e-4)
    free = make_cell(input_norm=None)
    assert free(1e4 * o, h).abs().max() > 1e6 * free(o, h).abs().max()


def test_zero_input_is_finite_and_only_decays_the_state():
    cell = make_cell()
    _, h = make_inputs()
    o = torch.zeros(3, 6, requires_grad=True)
    out = cell(o, h)
    decay = (-cell.A_log.exp() * nn.functional.softplus(cell.dt_bias).unsqueeze(-1)).exp()
    torch.testing.assert_close(out, decay * h)
    out.sum().backward()
    assert o.grad.isfinite().all()


def make_read(channels=6, state_dim=4):
    torch.manual_seed(2)
    read = TokenRead(channels, state_dim)
    assert read.weight.eq(0).all()
    nn.init.normal_(read.weight)
    return read


@pytest.mark.parametrize('num_extra_tokens', [0, 1, 2])
def test_read_equals_its_definition(num_extra_tokens):
    """X_p = O_p + C_p hᵀ with C_p = W_C O_p, one token after the other; extra tokens pass to the last bit."""
    read = make_read().double()
    torch.manual_seed(3)
    x, h = torch.randn(3, 7, 6, dtype=torch.float64), make_inputs(dtype=torch.float64)[1]
    before = x.clone()
    actual = read(x, h, num_extra_tokens)
    assert torch.equal(x, before)
    assert torch.equal(actual[:, :num_extra_tokens], x[:, :num_extra_tokens])
    for b in range(3):
        for p in range(num_extra_tokens, 7):
            expected = x[b, p] + h[b] @ (read.weight @ x[b, p])
            torch.testing.assert_close(actual[b, p], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('num_extra_tokens', [0, 1])
def test_gradients_of_read_and_carry(num_extra_tokens):
    read, carry = make_read().double(), StateCarry(3, 6).double()
    torch.manual_seed(3)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(x, h, *weights):
        return read(x, carry(h), num_extra_tokens)

    assert torch.autograd.gradcheck(run, (x, h, read.weight, carry.weight))


def test_carry_maps_the_channel_axis():
    carry, h = StateCarry(6, 9).double(), make_inputs(dtype=torch.float64)[1]
    torch.testing.assert_close(carry(h), torch.einsum('ed,bdn->ben', carry.weight, h), rtol=1e-12, atol=1e-12)


def test_summary_token():
    x = torch.randn(2, 5, 3)
    assert torch.equal(summary_token(x, 1), x[:, 0]) and torch.equal(summary_token(x, 2), x[:, 0])
    torch.testing.assert_close(summary_token(x), sum(x[:, p] for p in range(5)) / 5)


@pytest.mark.parametrize('dt_range', [(1e-3, 1e-1), (1e-6, 30.0)])
@pytest.mark.parametrize('init_weights', [False, True])
def test_initialisation(dt_range, init_weights):
    torch.manual_seed(0)
    cell = S6LATokenCell(1500, 5, dt_range=dt_range)
    if init_weights:
        nn.init.zeros_(cell.A_log)
        nn.init.zeros_(cell.dt_bias)
        cell.init_weights()
    check_state_parameters(cell, *dt_range)


def check_state_parameters(cell, low, high):
    """A[d, n] = −(n + 1), and log softplus(b_Δ) uniform: its empirical distribution is near the line."""
    channels, state_dim = cell.A_log.shape
    rates = -torch.arange(1.0, state_dim + 1).expand(channels, -1)
    torch.testing.assert_close(-cell.A_log.detach().exp(), rates, rtol=1e-5, atol=0)
    dt = nn.functional.softplus(cell.dt_bias.detach().double())
    assert dt.min() >= low * (1 - 1e-4) and dt.max() <= high * (1 + 1e-4)
    quantile = ((dt / low).log() / math.log(high / low)).sort().values
    # 1.63 / √D is what a right distribution exceeds once in a hundred seeds.
    assert (quantile - torch.arange(channels) / channels).abs().max() < 1.63 / math.sqrt(channels)


def test_init_weights_of_a_parent_does_not_overwrite_the_state_layers():
    torch.manual_seed(0)
    layers = ['Linear', 'RMSNorm', 'S6LATokenCell', 'TokenRead', 'StateCarry']
    root = Sequential(
        nn.Linear(64, 64),
        S6LATokenCell(256, 8),
        TokenRead(64, 8),
        StateCarry(64, 128),
        init_cfg=dict(type='Constant', val=3, layer=layers),
    )
    linear, cell, read, carry = root
    for parameter in (cell.A_log, cell.dt_bias, read.weight):
        nn.init.constant_(parameter, 7)
    root.init_weights()
    assert linear.weight.eq(3).all()  # what the parent's init_cfg is meant for
    check_state_parameters(cell, 1e-3, 1e-1)
    assert cell.input_norm.weight.eq(1).all() and read.weight.eq(0).all() and read.weight.requires_grad
    # PyTorch's own initialisation: uniform within 1/√fan_in.
    for weight in (cell.dt_proj.weight, cell.B_proj.weight, carry.weight):
        assert 0.95 / math.sqrt(weight.shape[1]) < weight.abs().max() <= 1 / math.sqrt(weight.shape[1])


def test_empty_batch():
    cell, read = make_cell(), make_read()
    h = cell(torch.zeros(0, 6), torch.zeros(0, 6, 4))
    assert h.shape == (0, 6, 4) and read(torch.zeros(0, 5, 6), h, 1).shape == (0, 5, 6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(state_dim=0), 'state_dim=0.*positive integer'),
        (dict(discretization='bilinear'), "discretization='bilinear'.*euler.*zoh"),
        (dict(input_norm='layer'), "input_norm='layer'.*rms.*None"),
        (dict(dt_range=(0.1, 0.001)), r'dt_range=\(0\.1, 0\.001\).*positive.*smaller one first'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        S6LATokenCell(4, **options)


def test_carry_is_exact_under_autocast():
    carry, h = StateCarry(6, 9), torch.randn(2, 6, 4)
    expected = carry(h)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(carry(h), expected, rtol=0, atol=1e-6)
