"""The compiled op with ``norm_eps``: kernels of their own, which sum over the channels of each pixel."""

import itertools

import pytest
import torch
from op_cases import (
    CHANNEL,
    HALF,
    NAMES,
    NORM,
    OP_DEVICES,
    VIEWS,
    assert_backward,
    assert_forward,
    case,
    channels_last,
    poisoned_memory,
    random_like,
    reference_gradients,
    reference_scan,
    scan,
    scan_backward,
    threads,
    views,
)
from op_inputs import DTYPES, LAYOUTS, sample_inputs
from releases import since
from torch._subclasses.fake_tensor import FakeTensorMode

from s6la_mm.ops import selective_update

pytestmark = pytest.mark.parametrize('device', OP_DEVICES)
MAPS = pytest.mark.parametrize('memory', ['contiguous', 'channels_last'])


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


def assert_both(inputs, message='', **options):
    """Forward and backward against the reference, the gradient coming in the memory format of the result."""
    out = assert_forward(inputs, message, **options)
    grads = assert_backward(torch.empty_like(out).copy_(random_like(out)), inputs, message, **options)
    return out, grads


@MAPS
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('zoh', [False, True])
@pytest.mark.parametrize('dt_softplus', [False, True])
def test_every_dtype(device, memory, dtype, zoh, dt_softplus):
    inputs = case(memory, dtype=dtype, device=device, size=(5, 7), state_dim=9)
    options = dict(dt_softplus=dt_softplus, zoh=zoh, norm_eps=1e-6)
    if dt_softplus:
        inputs['dt'] = 2 - 3 * inputs['dt']  # of both signs
    out, grads = assert_both(inputs, **options)
    assert out.stride() == inputs['h0'].stride()
    assert all(grads[name].stride() == inputs[name].stride() for name in CHANNEL)
    inputs.pop('dt_bias')
    assert_both(inputs, **options)


@MAPS
@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('return_states', [False, True])
def test_float32_state_with_half_inputs(device, memory, dtype, return_states):
    inputs = case(memory, dtype=dtype, device=device, size=(5, 7), state_dim=9)
    inputs['h0'] = inputs['h0'].float()
    out, _ = assert_both(inputs, return_states=return_states, **NORM)
    assert out.dtype == torch.float32


@MAPS
@pytest.mark.parametrize('state_dim', [1, 3, 8, 17, 32, 33, 65])
def test_sizes(device, memory, state_dim):
    for batch, size in itertools.product((1, 3), [(), (1,), (33,), (1, 5), (5, 1), (7, 9), (2, 3, 5)]):
        inputs = case(memory, device=device, batch=batch, state_dim=state_dim, size=size)
        assert_both(inputs, f'batch {batch}, {size}', **NORM)


@MAPS
@pytest.mark.parametrize('state_dim', [63, 64, 65, 128, 129, 260])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_many_channels(device, memory, state_dim, dtype):
    """Up to and beyond what a block of the CUDA kernels adds up itself."""
    inputs = case(memory, device=device, batch=2, state_dim=state_dim, size=(3, 5), dtype=dtype)
    assert_both(inputs, **NORM)


@MAPS
def test_no_elements(device, memory):
    for sizes in (dict(batch=0), dict(size=(0, 3)), dict(size=(3, 0)), dict(state_dim=0)):
        inputs = case(memory, device=device, **sizes)
        out = scan(inputs, **NORM)
        assert out.shape == inputs['h0'].shape
        grads = scan_backward(torch.ones_like(out), inputs, **NORM)
        assert all((grad == 0).all() and grad.shape == inputs[name].shape for name, grad in grads.items())


@MAPS
@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('size', 'state_dim'), [((5, 6), 6), ((4, 8), 8), ((4, 8), 16)])
def test_strides(device, memory, view, dtype, size, state_dim):
    inputs = case(memory, device=device, dtype=dtype, size=size, state_dim=state_dim)
    viewed = {name: dict(views(inputs[name], CHANNEL[name]))[view] for name in CHANNEL}
    assert_both(inputs | viewed, 'all', **NORM)
    for name in CHANNEL:
        assert_both(inputs | {name: viewed[name]}, name, **NORM)
    grad = random_like(inputs['h0'])
    assert_backward(dict(views(grad, 1))[view], inputs, 'grad', **NORM)


def test_mixed_memory_formats(device):
    inputs = case('contiguous', device=device, size=(5, 6), state_dim=6)
    tensors = inputs | dict(grad=random_like(inputs['h0']))
    axes = CHANNEL | dict(grad=1)
    for chosen in itertools.product([False, True], repeat=len(axes)):
        mixed = {n: channels_last(tensors[n], axes[n]) for n, pick in zip(axes, chosen) if pick}
        mixed = tensors | mixed
        grad = mixed.pop('grad')
        assert_forward(mixed, str(chosen), **NORM)
        assert_backward(grad, mixed, str(chosen), **NORM)


@MAPS
@pytest.mark.parametrize('zoh', [False, True])
def test_every_choice_of_gradients(device, memory, zoh):
    inputs = case(memory, device=device, size=(5, 3), state_dim=9)
    options = NORM | dict(zoh=zoh)
    grad = random_like(inputs['h0'])
    together = assert_backward(grad, inputs, **options)
    for mask in itertools.product([False, True], repeat=6):
        wanted = [name for name, asked in zip(NAMES, mask) if asked]
        for name, value in scan_backward(grad, inputs, wanted=wanted, **options).items():
            scale = together[name].abs().max().item()
            torch.testing.assert_close(value, together[name], rtol=1e-6, atol=1e-6 * scale)


@MAPS
@pytest.mark.parametrize('dtype', DTYPES)
def test_threads_and_runs_agree_bitwise(device, memory, dtype):
    inputs = case(memory, device=device, dtype=dtype, state_dim=33, size=(23, 27))
    results = []
    for number in (1, 2, 3, 1):
        with threads(number):
            out = scan(inputs, **NORM)
            results.append({'out': out, **scan_backward(out, inputs, **NORM)})
    for result in results[1:]:
        for name, tensor in result.items():
            assert torch.equal(tensor, results[0][name]) and tensor.isfinite().all(), name
    assert_both(inputs, **NORM)


@MAPS
@pytest.mark.parametrize('name', ['x', 'dt', 'B', 'h0'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_not_finite_stay_in_their_pixel(device, memory, name, value):
    """One pixel of each of 33 maps, at every position of the row; x reaches all channels of it, the others one."""
    clean = case(memory, device=device, batch=33, state_dim=5, size=(1, 33))
    changed = clean[name].clone()
    at = torch.arange(33)
    rows = changed if name == 'h0' else changed[0]
    rows[at, 2, 0, at] = value
    dirty = clean | {name: changed}
    out, out_clean = scan(dirty, **NORM), scan(clean, **NORM)
    expected, expected_clean = reference_scan(dirty, **NORM), reference_scan(clean, **NORM)
    touched = expected.ne(expected_clean)
    assert touched.sum() == (33 * 5 if name == 'x' else 33)
    assert torch.equal(out[~touched], out_clean[~touched]), 'a neighbour changed'
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    grad = random_like(out)
    grads, grads_clean = scan_backward(grad, dirty, **NORM), scan_backward(grad, clean, **NORM)
    references = reference_gradients(grad, dirty, **NORM)
    for key in CHANNEL:
        tensor = grads[key] if key == 'h0' else grads[key][0]
        tensor_clean = grads_clean[key] if key == 'h0' else grads_clean[key][0]
        elsewhere = torch.ones_like(tensor, dtype=torch.bool)
        elsewhere[at, :, 0, at] = False
        assert torch.equal(tensor[elsewhere], tensor_clean[elsewhere]), f'a neighbour of the gradient of {key} changed'
        reference = references[key] if key == 'h0' else references[key][0]
        if value != value:
            assert tensor[reference.isnan()].isnan().all(), f'the gradient of {key} lost a NaN'


@MAPS
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_large_tiny_and_zero_pixels(device, memory, dtype):
    """Squares of float16 leave its range above 256 and below 2e-4, those of float32 do not."""
    inputs = case(memory, device=device, dtype=dtype, state_dim=8, size=(3, 5))
    for scale in (0.0, 1e-4, 1e-2, 1e2, 1e4):
        scaled = inputs | {name: inputs[name] * scale for name in ('x', 'dt', 'B')}
        out = assert_forward(scaled, f'scale {scale}', **NORM)
        assert out.isfinite().all()
        grads = scan_backward(random_like(out), scaled, **NORM)
        expected = reference_gradients(random_like(out), scaled, **NORM)
        for name, grad in grads.items():
            assert torch.equal(grad.isfinite(), expected[name].to(grad.dtype).isfinite()), f'{name}, scale {scale}'


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('discretization', 'norm_eps'), [('euler', 1e-6), ('zoh', 0.5)])
def test_public_function(device, layout, discretization, norm_eps):
    """The definition, through gradcheck and with second derivatives; tokens are normalised outside the kernels."""
    inputs = sample_inputs(layout, dtype=torch.float64, device=device, size=(2, 2), channels=3, state_dim=3)
    options = dict(dt_softplus=True, discretization=discretization)
    rms = (inputs['x'].square().mean(1, keepdim=True) + norm_eps).sqrt()
    divided = inputs | {name: inputs[name] / rms for name in ('x', 'dt', 'B')}
    torch.testing.assert_close(
        selective_update(**inputs, norm_eps=norm_eps, **options), selective_update(**divided, **options)
    )
    tensors = tuple(t.requires_grad_() for t in inputs.values())

    def update(*tensors):
        return selective_update(**dict(zip(inputs, tensors)), norm_eps=norm_eps, **options)

    assert torch.autograd.gradcheck(update, tensors)
    assert torch.autograd.gradgradcheck(update, tensors)


@MAPS
@since(2, 4, 'torch.library.opcheck')
def test_opcheck_and_fake_results(device, memory):
    inputs = case(memory, device=device, size=(3, 5), state_dim=4)
    tensors = [t.requires_grad_() for t in (inputs[name] for name in NAMES)]
    arguments = (*tensors, True, False, False, 1e-6)
    torch.library.opcheck(torch.ops.s6la_mm.selective_scan.default, arguments)
    grad = random_like(inputs['h0'])
    torch.library.opcheck(torch.ops.s6la_mm.selective_scan_backward.default, (grad, *arguments, [True] * 6))
    mode = FakeTensorMode()
    for name, view in itertools.product(CHANNEL, VIEWS):
        viewed = {n: t.detach() for n, t in inputs.items()}
        viewed[name] = dict(views(viewed[name], CHANNEL[name]))[view]
        fake = {n: mode.from_tensor(t) for n, t in viewed.items()}
        for a, b in zip(
            (scan(viewed, **NORM), *scan_backward(grad, viewed, **NORM).values()),
            (scan(fake, **NORM), *scan_backward(mode.from_tensor(grad), fake, **NORM).values()),
        ):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()), f'{name} {view}'


@pytest.mark.parametrize('fake', [False, True], ids=['real', 'fake'])
@pytest.mark.parametrize(('memory', 'depth'), [('token', 1), ('contiguous', 3), ('contiguous', 0)])
def test_what_it_does_not_do_is_said(device, memory, depth, fake):
    """The kernels normalise one step of a map; the public function offers no more than that and tokens."""
    inputs = case(memory, depth=depth, device=device)
    tensors = inputs | dict(grad=torch.zeros_like(inputs['h0']))
    if fake:
        mode = FakeTensorMode()
        tensors = {name: mode.from_tensor(t) for name, t in tensors.items()}
    grad = tensors.pop('grad')
    with pytest.raises(ValueError, match=rf'norm_eps needs one step of the map layout, got {depth} steps'):
        scan(tensors, norm_eps=1e-6)
    with pytest.raises(ValueError, match=r'norm_eps needs one step of the map layout'):
        scan_backward(grad, tensors, norm_eps=1e-6)
