"""The compiled backward op, straight through torch.ops, against autograd through the float64 reference."""

import itertools

import pytest
import torch
from op_cases import (
    CHANNEL,
    HALF,
    MEMORY,
    NAMES,
    OP_DEVICES,
    OPTIONS,
    VIEWS,
    assert_backward,
    case,
    channels_last,
    poisoned_memory,
    random_like,
    reference_gradients,
    scan,
    scan_backward,
    views,
)
from op_inputs import DTYPES, sample_inputs

pytestmark = pytest.mark.parametrize('device', OP_DEVICES)


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


def gradient_of(inputs, return_states=False):
    """An incoming gradient of the output, in the memory format of the output."""
    out = scan(inputs, return_states=return_states)
    return torch.empty_like(out).copy_(random_like(out))


@pytest.mark.smoke
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('with_bias', [True, False])
def test_every_dtype(device, dtype, memory, options, with_bias):
    inputs = case(memory, dtype=dtype, device=device, size=(5, 7), channels=11, state_dim=9)
    if not with_bias:
        inputs.pop('dt_bias')
    if options['dt_softplus']:
        inputs['dt'] = 2 - 3 * inputs['dt']  # of both signs
    grads = assert_backward(gradient_of(inputs), inputs, **options)
    for name in CHANNEL:
        assert grads[name].stride() == inputs[name].stride(), f'the gradient of a dense {name} has its memory format'


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('depth', [1, 3])
def test_float32_state_with_half_inputs(device, dtype, memory, depth):
    inputs = case(memory, depth=depth, dtype=dtype, device=device, size=(5, 7), channels=11, state_dim=9)
    inputs['h0'] = sample_inputs('token' if memory == 'token' else 'map', size=(5, 7), channels=11, state_dim=9)['h']
    inputs['h0'] = inputs['h0'].to(device)
    for return_states in (False, True):
        options = dict(dt_softplus=True, return_states=return_states)
        assert_backward(gradient_of(inputs, return_states), inputs, **options)


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize(('options', 'depth'), [(OPTIONS[0], 3), (OPTIONS[1], 1)], ids=str)
def test_every_choice_of_gradients(device, memory, options, depth):
    """A gradient does not depend on which others are asked for: all 64 masks."""
    inputs = case(memory, depth=depth, device=device, size=(5, 3), channels=5, state_dim=9)
    grad = gradient_of(inputs)
    together = assert_backward(grad, inputs, **options)
    for mask in itertools.product([False, True], repeat=6):
        wanted = [name for name, asked in zip(NAMES, mask) if asked]
        for name, value in scan_backward(grad, inputs, wanted=wanted, **options).items():
            scale = together[name].abs().max().item()
            torch.testing.assert_close(
                value, together[name], rtol=1e-6, atol=1e-6 * scale, msg=lambda m, w=wanted, n=name: f'{n} of {w}: {m}'
            )


@pytest.mark.parametrize('memory', MEMORY)
def test_gradient_of_a_bias_that_is_not_there(device, memory):
    """Asking for it is a mistake or means nothing; it never is a number."""
    inputs = case(memory, device=device)
    inputs.pop('dt_bias')
    try:
        grads = scan_backward(gradient_of(inputs), inputs, wanted=list(NAMES))
    except (ValueError, TypeError) as error:
        assert 'dt_bias' in str(error)
    else:
        assert grads['dt_bias'].numel() == 0


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('state_dim', [1, 3, 8, 17, 32, 33])
def test_sizes(device, memory, state_dim):
    for batch in (1, 3):
        if memory == 'token':
            sizes = [dict(channels=channels) for channels in (1, 2, 7, 16, 33)]
        else:
            spaces = [(), (1,), (33,), (1, 5), (5, 1), (4, 4), (7, 9), (2, 3, 5)]
            sizes = [dict(size=space) for space in spaces]
        for size in sizes:
            inputs = case(memory, device=device, batch=batch, state_dim=state_dim, **size)
            assert_backward(gradient_of(inputs), inputs, f'batch {batch}, {size}', dt_softplus=True)


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('return_states', [True, False])
@pytest.mark.parametrize('depth', [2, 15, 16, 17, 31, 32, 33, 64])
def test_steps(device, memory, return_states, depth):
    options = dict(dt_softplus=True, return_states=return_states)
    for dtype in (torch.float32, torch.float64):
        inputs = case(memory, depth=depth, device=device, dtype=dtype, size=(3, 5), channels=5, state_dim=9)
        # A slow decay, so that the first step still counts in the last state.
        inputs['A'] = inputs['A'].clamp(min=-0.05)
        assert_backward(gradient_of(inputs, return_states), inputs, str(dtype), **options)


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('depth', [17, 33])
def test_steps_in_half_types(device, memory, dtype, depth):
    """The states between are recomputed in float32: rounded ones would show."""
    inputs = case(memory, depth=depth, device=device, dtype=dtype, size=(3, 5), channels=5, state_dim=9)
    inputs['A'] = inputs['A'].clamp(min=-0.05)
    for return_states in (False, True):
        # A small gradient: its sum over the steps must fit float16.
        grad = gradient_of(inputs, return_states) / 64
        assert_backward(grad, inputs, dt_softplus=True, return_states=return_states)


@pytest.mark.parametrize('memory', MEMORY)
def test_chain_of_updates_is_the_scan(device, memory):
    inputs = case(memory, depth=5, device=device, size=(5, 7), channels=5, state_dim=9)
    states = scan(inputs, dt_softplus=True, return_states=True)
    grad = gradient_of(inputs)
    together = scan_backward(grad, inputs, dt_softplus=True)
    sums = {name: torch.zeros_like(inputs[name]) for name in ('A', 'dt_bias')}
    for t in reversed(range(5)):
        step = inputs | {name: inputs[name][t : t + 1] for name in ('x', 'dt', 'B')}
        step['h0'] = inputs['h0'] if t == 0 else states[t - 1]
        grads = scan_backward(grad, step, dt_softplus=True)
        grad = grads['h0']
        for name in ('x', 'dt', 'B'):
            torch.testing.assert_close(together[name][t], grads[name][0], rtol=1e-5, atol=1e-5)
        for name in sums:
            sums[name] += grads[name]
    torch.testing.assert_close(together['h0'], grad, rtol=1e-5, atol=1e-5)
    for name, value in sums.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize(('depth', 'dtype'), [(1, torch.bfloat16), (1, torch.float32), (3, torch.float32)])
@pytest.mark.parametrize(('size', 'state_dim'), [((5, 6), 6), ((4, 8), 8), ((4, 8), 16)])
def test_strides(device, memory, view, depth, dtype, size, state_dim):
    inputs = case(memory, depth=depth, device=device, dtype=dtype, size=size, channels=6, state_dim=state_dim)
    viewed = {name: dict(views(inputs[name], CHANNEL[name]))[view] for name in CHANNEL}
    grad = gradient_of(inputs)
    grad_view = dict(views(grad, 1))[view]
    assert_backward(grad_view, inputs | viewed, 'all', dt_softplus=True)
    assert_backward(grad_view, inputs, 'grad', dt_softplus=True)
    for name in CHANNEL:
        assert_backward(grad, inputs | {name: viewed[name]}, name, dt_softplus=True)
    states_view = dict(views(gradient_of(inputs, return_states=True), 2))[view]
    assert_backward(states_view, inputs, 'grad of states', dt_softplus=True, return_states=True)


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('state_dim', [257, 264, 2056])
@pytest.mark.parametrize('depth', [1, 2])
def test_many_channels(device, memory, state_dim, depth):
    """What the forward pass takes the backward pass takes, whatever memory its gradient comes in."""
    inputs = case(memory, depth=depth, device=device, batch=2, state_dim=state_dim, size=(2, 3))
    grad = gradient_of(inputs)
    assert_backward(grad, inputs, dt_softplus=True)
    axis_last = channels_last(torch.cat([grad[:, :1], grad], dim=1), 1)[:, 1:]
    assert_backward(axis_last, inputs, 'sliced', dt_softplus=True)


@pytest.mark.nightly
def test_more_chunks_of_a_state_than_a_grid_is_high(device):
    inputs = case('token', device=device, batch=1, channels=1, state_dim=32 * 65_536 + 1)
    assert_backward(gradient_of(inputs), inputs)


def test_strides_of_parameters(device):
    for memory in MEMORY:
        inputs = case(memory, device=device)
        grad = gradient_of(inputs)
        for name in ('A', 'dt_bias'):
            strided = inputs[name].repeat_interleave(2, dim=-1)[..., ::2]
            flat = inputs[name].flatten()[:1].view((1,) * inputs[name].dim()).expand_as(inputs[name])
            assert_backward(grad, inputs | {name: strided}, f'{name}, every second', dt_softplus=True)
            assert_backward(grad, inputs | {name: flat}, f'{name}, one number', dt_softplus=True)
    inputs['A'] = inputs['A'].t().contiguous().t()
    assert_backward(grad, inputs, 'A transposed')


@pytest.mark.parametrize('size', [(5, 6), (2, 3, 5), (7,)])
@pytest.mark.parametrize('depth', [1, 3])
def test_mixed_memory_formats(device, size, depth):
    inputs = case('contiguous', depth=depth, device=device, size=size, state_dim=6)
    grad = gradient_of(inputs)
    tensors = inputs | dict(grad=grad)
    axes = CHANNEL | dict(grad=1)
    for chosen in itertools.product([False, True], repeat=len(axes)):
        mixed = dict(tensors)
        for name, pick in zip(axes, chosen):
            if pick:
                mixed[name] = channels_last(tensors[name], axes[name])
        assert_backward(mixed.pop('grad'), mixed, str(chosen))


@pytest.mark.parametrize('memory', MEMORY)
def test_sum_over_a_large_map(device, memory):
    """The gradients of A and dt_bias sum over batch and space: the float32 sum must not lose digits as it grows."""
    if memory == 'token':
        inputs = case(memory, device=device, batch=4096, channels=3, state_dim=5)
    else:
        inputs = case(memory, device=device, batch=2, state_dim=3, size=(128, 160))
    # Terms of one sign: nothing cancels, so the relative error of the sum is the sum's own.
    inputs |= {name: inputs[name].abs() for name in ('h0', 'x', 'B')}
    inputs['A'] = inputs['A'].clamp(min=-0.1)
    grad = torch.ones_like(inputs['h0'])
    expected = reference_gradients(grad, inputs, dt_softplus=True)
    actual = scan_backward(grad, inputs, dt_softplus=True)
    for name in ('A', 'dt_bias'):
        torch.testing.assert_close(actual[name].double(), expected[name], rtol=5e-6, atol=0)
