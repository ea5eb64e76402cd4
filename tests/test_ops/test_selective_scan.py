"""The op against a float64 loop over the formula, its gradients, its invariants and its errors."""

import pytest
import torch
from op_inputs import DEVICES, DTYPES, EPS, LAYOUTS, oracle_update, sample_inputs

from s6la_mm.ops import DISCRETIZATIONS, selective_scan, selective_update

pytestmark = pytest.mark.parametrize('layout', LAYOUTS)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize('dt_softplus', [True, False])
@pytest.mark.parametrize('with_bias', [True, False])
def test_update_equals_oracle(layout, device, dtype, discretization, dt_softplus, with_bias):
    inputs = sample_inputs(layout, dtype=dtype, device=device)
    if not with_bias:
        inputs.pop('dt_bias')
    options = dict(dt_softplus=dt_softplus, discretization=discretization)
    actual = selective_update(**inputs, **options)
    expected = oracle_update(**inputs, **options)
    assert actual.dtype == dtype and actual.device.type == device
    # float32 arithmetic on the way (a few roundings of its own), then one rounding to the storage type.
    tolerance = max(EPS[dtype], 0 if dtype == torch.float64 else 8 * EPS[torch.float32])
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=2 * tolerance, atol=2 * tolerance)


@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize('return_states', [True, False])
def test_chain_equals_scan(layout, discretization, return_states):
    inputs = sample_inputs(layout, depth=7, dtype=torch.float64)
    options = dict(dt_softplus=True, discretization=discretization)
    states = selective_scan(**inputs, **options, return_states=return_states)
    h, expected = inputs['h0'], []
    for t in range(7):
        step = {name: inputs[name][t] for name in ('x', 'dt', 'B')}
        h = selective_update(h, **step, A=inputs['A'], dt_bias=inputs['dt_bias'], **options)
        expected.append(h)
    torch.testing.assert_close(states, torch.stack(expected) if return_states else h, rtol=0, atol=0)


def test_scan_without_h0_starts_at_zero(layout):
    inputs = sample_inputs(layout, depth=3)
    h0 = torch.zeros_like(inputs.pop('h0'))
    torch.testing.assert_close(selective_scan(**inputs), selective_scan(**inputs, h0=h0), rtol=0, atol=0)


def test_scan_keeps_float32_between_steps(layout):
    """Rounding the state to bfloat16 after each of 64 steps would lose what the updates add."""
    inputs = sample_inputs(layout, depth=64, dtype=torch.bfloat16)
    exact = selective_scan(**{name: t.double() for name, t in inputs.items()}, dt_softplus=True)
    actual = selective_scan(**inputs, dt_softplus=True)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), exact, rtol=EPS[torch.bfloat16], atol=1e-5)


@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize('dt_softplus', [True, False])
def test_gradients(layout, discretization, dt_softplus):
    inputs = sample_inputs(layout, dtype=torch.float64, size=(2, 2), channels=3, state_dim=2, requires_grad=True)

    def update(*tensors):
        return selective_update(**dict(zip(inputs, tensors)), dt_softplus=dt_softplus, discretization=discretization)

    assert torch.autograd.gradcheck(update, tuple(inputs.values()))


def test_scan_gradients(layout):
    inputs = sample_inputs(layout, depth=3, dtype=torch.float64, size=(2,), channels=2, state_dim=2, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: selective_scan(**dict(zip(inputs, t)), dt_softplus=True), tuple(inputs.values())
    )


def test_non_contiguous_inputs_and_gradients(layout):
    inputs = sample_inputs(layout, requires_grad=True)
    strided = {name: t.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_() for name, t in inputs.items()}
    assert not strided['h'].is_contiguous()
    out, out_strided = selective_update(**inputs), selective_update(**strided)
    torch.testing.assert_close(out_strided, out, rtol=0, atol=0)
    grad = torch.randn(*out.shape[:-1], 2 * out.shape[-1])[..., ::2]
    out.backward(grad.contiguous())
    out_strided.backward(grad)
    for name in inputs:
        torch.testing.assert_close(strided[name].grad, inputs[name].grad, rtol=1e-6, atol=1e-6)


def test_expanded_state(layout):
    inputs = sample_inputs(layout)
    row = inputs['h'][:1]
    expanded = selective_update(**inputs | dict(h=row.expand_as(inputs['h'])))
    copied = selective_update(**inputs | dict(h=row.repeat(2, *[1] * (row.dim() - 1))))
    torch.testing.assert_close(expanded, copied, rtol=0, atol=0)


@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_small_step_keeps_the_state_and_large_step_forgets_it(layout, dtype, discretization):
    inputs = sample_inputs(layout, dtype=dtype)
    inputs.pop('dt_bias')
    inputs['A'] = inputs['A'].clamp(max=-0.5)
    keep = selective_update(**inputs | dict(dt=torch.full_like(inputs['dt'], 1e-30 if dtype != torch.float16 else 0)))
    torch.testing.assert_close(keep, inputs['h'], rtol=0, atol=0)
    large = inputs | dict(dt=torch.full_like(inputs['dt'], 1e4), discretization=discretization)
    other = large | dict(h=inputs['h'] + 1)
    torch.testing.assert_close(selective_update(**large), selective_update(**other), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('discretization', DISCRETIZATIONS)
def test_state_stays_bounded(layout, dtype, discretization):
    """|h| after many steps is at most |h0| + max|gain · B · x| / (1 − decay), whatever the number of steps."""
    torch.manual_seed(0)
    inputs = sample_inputs(layout, dtype=dtype, size=(3,))
    A = inputs['A'].clamp(max=-0.5)
    h = inputs['h']
    for _ in range(1000):
        fresh = {name: torch.rand_like(inputs[name]) * 2 - 1 for name in ('x', 'dt', 'B')}
        h = selective_update(
            h, **fresh, A=A, dt_bias=inputs['dt_bias'], dt_softplus=True, discretization=discretization
        )
    # With |B|, |x| ≤ 1: gain / (1 − exp(ΔA)) ≤ Δ / (1 − exp(−Δ/2)) ≤ 2 + Δ; Δ ≤ softplus(1 + max bias).
    bound = 2 + torch.nn.functional.softplus(1 + inputs['dt_bias'].max()) + 1
    assert h.isfinite().all() and h.abs().max() <= bound


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_bad_values_stay_where_they_are(layout, value):
    inputs = sample_inputs(layout)
    clean = selective_update(**inputs)
    inputs['h'][0, 0] = value
    out = selective_update(**inputs)
    assert not out[0, 0].isfinite().any()
    out[0, 0] = clean[0, 0]
    torch.testing.assert_close(out, clean, rtol=0, atol=0)


@pytest.mark.parametrize('batch', [0, 1])
@pytest.mark.parametrize('depth', [0, 1])
def test_empty_and_single(layout, batch, depth):
    inputs = sample_inputs(layout, batch=batch, depth=depth, size=(1, 1))
    states = selective_scan(**inputs, return_states=True)
    assert states.shape == (depth, *inputs['h0'].shape)
    last = selective_scan(**inputs)
    torch.testing.assert_close(last, states[-1] if depth else inputs['h0'], rtol=0, atol=0)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(discretization='bilinear'), ValueError, "discretization='bilinear'.*euler.*zoh"),
        (dict(x=torch.zeros(1, 1)), ValueError, r'x must have shape \(2, .*got \(1, 1\)'),
        (dict(B=torch.zeros(1)), ValueError, r'B must have shape .*got \(1,\)'),
        (dict(dt_bias=torch.zeros(99)), ValueError, 'dt_bias must have shape'),
        (dict(A=torch.zeros(3, 3, 3)), ValueError, r'A must be \(N,\) for maps or \(D, N\) for tokens'),
        (dict(h=torch.zeros(2, 99, 4)), ValueError, 'h must be .* to fit A'),
        (dict(dt=torch.zeros(2, 6, device='meta')), ValueError, 'dt is on meta, but the state is on cpu'),
        (
            dict(x=torch.zeros(2, 6, dtype=torch.int64)),
            TypeError,
            'x must be a dense tensor of float64.*got torch.int64',
        ),
        (dict(A=None), TypeError, 'A must be a dense tensor.*got NoneType'),
    ],
)
def test_wrong_arguments(layout, change, error, message):
    with pytest.raises(error, match=message):
        selective_update(**sample_inputs(layout) | change)


def test_scan_names_wrong_depth(layout):
    inputs = sample_inputs(layout, depth=4)
    with pytest.raises(ValueError, match='dt must have shape'):
        selective_scan(**inputs | dict(dt=inputs['dt'][:3]))


def test_pixels_are_independent(layout):
    """Shuffling what the op treats as independent (pixels, or a token state's channels) commutes with it."""
    inputs = sample_inputs(layout, size=(16,), channels=16)
    permutation = torch.randperm(16)
    shuffled = dict(inputs)
    if layout == 'map':
        shuffled |= {name: inputs[name][..., permutation] for name in ('h', 'x', 'dt', 'B')}
        expected = selective_update(**inputs)[..., permutation]
    else:
        shuffled |= {name: inputs[name][:, permutation] for name in ('h', 'x', 'dt')}
        shuffled |= {name: inputs[name][permutation] for name in ('A', 'dt_bias')}
        expected = selective_update(**inputs)[:, permutation]
    torch.testing.assert_close(selective_update(**shuffled), expected, rtol=0, atol=0)
