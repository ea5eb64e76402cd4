"""The arithmetic of the compiled op: accuracy over the whole range of Δ, and values that are not finite."""

import itertools

import pytest
import torch
from op_cases import (
    CHANNEL,
    OP_DEVICES,
    OPTIONS,
    assert_forward,
    channels_last,
    channels_last_inputs,
    poisoned_memory,
    random_like,
    reference_gradients,
    reference_scan,
    scan,
    scan_backward,
)
from op_inputs import DTYPES, EPS, sample_inputs

pytestmark = pytest.mark.parametrize('device', OP_DEVICES)
INF, NAN = float('inf'), float('nan')
EXACT = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


def pixels(device, dtype, a=-1.0, **values):
    """A map state of one channel with the given numbers; what is not given is 0 (h0) or 1 (x, dt, B)."""
    values = {name: torch.as_tensor(v, dtype=torch.float64).to(dtype).flatten() for name, v in values.items()}
    number = max(v.numel() for v in values.values())
    inputs = {name: torch.full((1, 1, 1, number), float(name != 'h0'), dtype=dtype) for name in CHANNEL}
    inputs |= {name: v.expand(number).contiguous().view(1, 1, 1, number) for name, v in values.items()}
    inputs |= dict(A=torch.tensor([a], dtype=dtype), h0=inputs['h0'][0])
    return {name: t.to(device) for name, t in inputs.items()}


def assert_relative(actual, expected, tolerance, points, what):
    """Relative accuracy, except near the smallest normal numbers, which may be flushed to zero."""
    tiny = 3 * torch.finfo(actual.dtype).smallest_normal
    actual, expected = actual.double().cpu().flatten(), expected.double().cpu().flatten()
    ratio = (actual - expected).abs() / (tolerance * expected.abs() + tiny)
    ratio = torch.where(torch.eq(actual, expected), 0.0, ratio).nan_to_num(nan=INF)
    worst = ratio.argmax()
    assert ratio[worst] <= 1, (
        f'{what} at {points.flatten()[worst]}: got {actual[worst]}, expected {expected[worst]}, '
        f'{ratio[worst]:.1f} times the tolerance'
    )


@pytest.mark.parametrize('dtype', EXACT)
class TestAccuracy:
    """Each function of the formula alone, on numbers from the whole range."""

    def test_decay(self, device, dtype):
        # Not to the very largest number: a growing state (A > 0) is outside the definition.
        top = 88.3 if dtype == torch.float32 else 709.0
        z = torch.cat([torch.linspace(-1.3 * top, top, 4001), -torch.logspace(-40, 2, 500), torch.zeros(1)]).double()
        z = z.to(dtype).double()
        inputs = pixels(device, dtype, a=-1.0, dt=-z, h0=1.0, B=0.0)
        limit = EPS[dtype] * 4
        assert_relative(scan(inputs), z.exp(), torch.full_like(z, limit), z, 'exp')
        grads = scan_backward(torch.ones_like(inputs['h0']), inputs, wanted=['h0', 'dt'])
        assert_relative(grads['h0'], z.exp(), torch.full_like(z, limit), z, 'gradient of h0')
        assert_relative(grads['dt'], -z.exp(), torch.full_like(z, limit), z, 'gradient of dt')

    def test_overflowing_decay(self, device, dtype):
        z = torch.tensor([89.0, 100.0, 1e4, 1e30]) * (1 if dtype == torch.float32 else 10)
        inputs = pixels(device, dtype, a=1.0, dt=z, h0=1.0, x=0.0)
        assert torch.equal(scan(inputs).flatten().cpu(), torch.full((4,), INF, dtype=dtype))
        vanishing = pixels(device, dtype, a=-1.0, dt=z * 10, h0=1.0, x=0.0)
        assert (scan(vanishing) == 0).all()

    def test_softplus(self, device, dtype):
        lowest = -80.0 if dtype == torch.float32 else -700.0
        s = torch.cat([torch.linspace(lowest, 120, 4001), torch.logspace(-30, 4, 500), -torch.logspace(-30, 1, 500)])
        s = s.to(dtype).double()
        inputs = pixels(device, dtype, a=0.0, dt=s)
        # F.softplus, which leaves out exp(-20), is off by 1e-10 there; either is right.
        exact = s.clamp(min=0) + torch.log1p((-s.abs()).exp())
        limit = EPS[dtype] * (4 + 2 * (-s).clamp(min=0)) + 1.1e-10
        assert_relative(scan(inputs, dt_softplus=True), exact, limit, s, 'softplus')
        grads = scan_backward(torch.ones_like(inputs['h0']), inputs, wanted=['dt'], dt_softplus=True)
        slope = torch.where(s < 0, s.exp() / (1 + s.exp()), 1 / (1 + (-s).exp()))
        assert_relative(grads['dt'], slope, limit + 2e-9, s, 'gradient of softplus')

    def test_zoh_gain(self, device, dtype):
        z = -torch.cat([torch.logspace(-30, 4, 2001), torch.linspace(0.01, 120, 2001)]).to(dtype).double()
        inputs = pixels(device, dtype, a=-1.0, dt=-z)
        limit = torch.full_like(z, 6 * EPS[dtype])
        assert_relative(scan(inputs, zoh=True), -torch.expm1(z), limit, z, 'gain')
        grads = scan_backward(torch.ones_like(inputs['h0']), inputs, zoh=True)
        assert_relative(grads['x'], -torch.expm1(z), limit, z, 'gradient of x')
        assert_relative(grads['dt'], z.exp(), limit, z, 'gradient of dt')

    def test_zoh_gradient_of_A(self, device, dtype):
        """Its formula is a difference of two numbers that agree to the last digit for small Δ; the limit is Δ² / 2."""
        for step in (1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0, 30.0):
            inputs = pixels(device, dtype, a=-1.0, dt=step)
            actual = scan_backward(torch.ones_like(inputs['h0']), inputs, zoh=True, wanted=['A'])['A']
            z = -inputs['dt'].double().flatten().cpu()
            series = sum(z**k * (k + 1) / torch.lgamma(torch.tensor(k + 3.0).double()).exp() for k in range(20))
            expected = torch.where(z.abs() < 0.7, z * z * series, z * z.exp() - torch.expm1(z))
            assert_relative(actual, expected, torch.tensor([64 * EPS[dtype]]).double(), z, 'gradient of A')


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last', 'token'])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_large_and_tiny_steps(device, memory, dtype, options):
    inputs = sample_inputs('token' if memory == 'token' else 'map', depth=1, dtype=dtype, device=device, size=(6, 7))
    inputs = channels_last_inputs(inputs) if memory == 'channels_last' else inputs
    lowest = [-1e4, -104.0, -88.0, -20.0, -1.0] if options['dt_softplus'] else []
    huge = [1e15, 1e25] if dtype != torch.float16 else []
    for dt in [0.0, 1e-30, 1e-7, 1e-3, 15.0, 20.5, 88.0, 104.0, 1e4, *huge, *lowest]:
        for bias in (1e-30, 3.0):
            constant = dict(dt=torch.full_like(inputs['dt'], dt), dt_bias=torch.full_like(inputs['dt_bias'], bias))
            out = assert_forward(inputs | constant, f'dt {dt}, bias {bias}', **options)
            # No 0 · inf or inf − inf in between: what is finite in exact arithmetic is finite.
            grads = scan_backward(random_like(out), inputs | constant, **options)
            expected = reference_gradients(random_like(out), inputs | constant, **options)
            for name, grad in grads.items():
                assert torch.equal(grad.isfinite(), expected[name].to(grad.dtype).isfinite()), f'{name}, dt {dt}'


def diagonal(memory, name, device, dtype, value, length=33):
    """Inputs of ``length`` rows, the clean ones and those where row i of one input has a value at position i."""
    if memory == 'token':
        inputs = sample_inputs('token', depth=1, batch=length, channels=length, state_dim=length, dtype=dtype)
    else:
        N, W = (length, 1) if memory == 'channels_last' else (1, length)
        inputs = sample_inputs('map', depth=1, batch=length, state_dim=N, size=(1, W), dtype=dtype)
        if memory == 'channels_last':
            inputs = channels_last_inputs(inputs)
    inputs = {key: t.to(device) for key, t in inputs.items()}
    changed = inputs[name].clone()
    assert changed.stride() == inputs[name].stride()
    at = torch.arange(length)
    rows = changed if name == 'h0' else changed[0]
    if memory == 'token' and name == 'h0':
        rows[at, at, at] = value
    elif memory == 'contiguous':
        rows[at, 0, 0, at] = value
    else:
        rows[(at, at) if memory == 'token' else (at, at, 0, 0)] = value
    return inputs, inputs | {name: changed}


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last', 'token'])
@pytest.mark.parametrize('name', ['h0', 'x', 'dt', 'B'])
@pytest.mark.parametrize('dtype', DTYPES)
def test_values_that_are_not_finite(device, memory, name, dtype):
    """At every position of a row, so at every lane of a vector and in the rest behind the last one."""
    for value, options in itertools.product([NAN, INF, -INF], OPTIONS):
        clean, dirty = diagonal(memory, name, device, dtype, value)
        out, out_clean = scan(dirty, **options), scan(clean, **options)
        expected, expected_clean = reference_scan(dirty, **options), reference_scan(clean, **options)
        touched = expected.ne(expected_clean)  # NaN differs from everything
        message = f'{name} = {value}, {options}'
        assert torch.equal(out[~touched], out_clean[~touched]), f'{message}: a neighbour changed'
        special = touched & ~expected.isfinite()
        torch.testing.assert_close(
            out[special].double(),
            expected[special],
            rtol=0,
            atol=0,
            equal_nan=True,
            msg=lambda m, s=message: f'{s}: {m}',
        )
        tolerance = 32 * max(EPS[dtype], EPS[torch.float32] if dtype != torch.float64 else 0)
        finite = touched & expected.isfinite()
        torch.testing.assert_close(out[finite].double(), expected[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last', 'token'])
@pytest.mark.parametrize('name', ['h0', 'x', 'dt', 'B', 'grad'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gradients_of_values_that_are_not_finite(device, memory, name, dtype):
    for value, options in itertools.product([NAN, INF, -INF], OPTIONS):
        clean, dirty = diagonal(memory, 'h0' if name == 'grad' else name, device, dtype, value)
        grad = grad_clean = random_like(scan(clean))
        if memory == 'channels_last':
            grad = grad_clean = channels_last(grad, 1)
        if name == 'grad':
            dirty, grad = clean, torch.where(dirty['h0'] == clean['h0'], grad, value)
        expected = reference_gradients(grad, dirty, **options)
        unchanged = reference_gradients(grad_clean, clean, **options)
        actual, actual_clean = scan_backward(grad, dirty, **options), scan_backward(grad_clean, clean, **options)
        for key in actual:
            message = f'{name} = {value}, {options}: gradient of {key}'
            touched = expected[key].ne(unchanged[key])
            # In the token layout x, dt and B sum over an axis, whose other elements reach all of the result.
            assert torch.equal(actual[key][~touched], actual_clean[key][~touched]), f'{message}: a neighbour changed'
            if value != value:
                assert actual[key][expected[key].isnan()].isnan().all(), f'{message}: lost a NaN'


@pytest.mark.parametrize('bits', [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_every_nan_is_stored_as_a_nan(device, dtype, bits):
    """Rounded like a number, a NaN whose bits are all set becomes a zero."""
    nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32).to(device)
    for name in ('A', 'dt_bias'):
        inputs = pixels(device, dtype, dt=[1.0] * 9, h0=1.0)
        inputs['h0'], inputs['A'] = inputs['h0'].to(dtype), inputs['A'].float()
        assert scan(inputs | {name: nan}).isnan().all()
        grads = scan_backward(torch.ones_like(inputs['h0']), inputs | {name: nan})
        assert all(grad.isnan().all() for key, grad in grads.items() if key in ('dt', 'h0', name))


@pytest.mark.parametrize('value', [NAN, INF])
def test_one_bad_channel_of_a_parameter(device, value):
    for memory, name in itertools.product(['contiguous', 'channels_last', 'token'], ['A', 'dt_bias']):
        layout = 'token' if memory == 'token' else 'map'
        clean = sample_inputs(layout, depth=1, channels=5, state_dim=9, size=(3, 7), device=device)
        clean = channels_last_inputs(clean) if memory == 'channels_last' else clean
        parameter = clean[name].clone()
        parameter[2] = value
        dirty = clean | {name: parameter}
        for options in OPTIONS:
            out, out_clean = scan(dirty, **options), scan(clean, **options)
            expected = reference_scan(dirty, **options)
            assert torch.equal(out[:, 2].isnan(), expected[:, 2].isnan())
            assert torch.equal(out[:, 2].isinf(), expected[:, 2].isinf())
            others = [i for i in range(out.shape[1]) if i != 2]
            assert torch.equal(out[:, others], out_clean[:, others]), f'{memory}, {name}, {options}'


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_results_beyond_the_half_types(device, dtype):
    """Stored results saturate to infinity as a cast does; between the steps nothing overflows."""
    largest = torch.finfo(dtype).max
    if dtype == torch.bfloat16:
        largest /= 4  # float32 has the same range: the product below must fit it
    inputs = pixels(device, dtype, dt=[0, 0, 1, 1], h0=[largest, -largest, 0, 0], x=[1, 1, 300, -300], B=300)
    assert torch.equal(scan(inputs), reference_scan(inputs).to(dtype))
    # A state beyond float16 that decays before it is stored.
    twice = {name: t.repeat(2, 1, 1, 1) for name, t in inputs.items() if name in ('x', 'dt', 'B')}
    twice['x'][1], twice['dt'][1] = 0, 10
    torch.testing.assert_close(scan(inputs | twice), reference_scan(inputs | twice).to(dtype), rtol=EPS[dtype], atol=0)


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last'])
def test_zero_A_is_an_integrator(device, memory):
    inputs = sample_inputs('map', depth=3, device=device)
    inputs['A'] = torch.zeros_like(inputs['A'])
    inputs = channels_last_inputs(inputs) if memory == 'channels_last' else inputs
    assert_forward(inputs, dt_softplus=True)
