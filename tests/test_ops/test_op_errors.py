"""What the op says to arguments that do not fit: directly, under fake tensors and through the public functions."""

import random
import re

import pytest
import torch
from op_cases import (
    CHANNEL,
    MEMORY,
    NAMES,
    OP_DEVICES,
    assert_within,
    case,
    random_like,
    reference_gradients,
    reference_scan,
    scan,
    scan_backward,
)
from op_inputs import LAYOUTS, sample_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

from s6la_mm.compat import TORCH
from s6la_mm.ops import selective_scan, selective_update

pytestmark = pytest.mark.parametrize('device', OP_DEVICES)

WRONG = {
    # What is changed, the error and what its message says. For both layouts.
    'x-shape': (dict(x=torch.zeros(2, 1, 1)), ValueError, r'x must have shape \(2, 2, .*got \(2, 1, 1\)'),
    'dt-steps': (dict(dt=lambda t: t[:1]), ValueError, r'dt must have shape \(2, .*got \(1, '),
    'B-rank': (dict(B=torch.zeros(2)), ValueError, r'B must have shape \(2, 2, .*got \(2,\)'),
    'B-size': (dict(B=lambda t: t[..., :-1]), ValueError, 'B must have shape .*got'),
    'dt_bias-size': (dict(dt_bias=torch.zeros(99)), ValueError, r'dt_bias must have shape \(\d,\), got \(99,\)'),
    'dt_bias-rank': (dict(dt_bias=torch.zeros(4, 1)), ValueError, r'dt_bias must have shape \(\d,\), got \(4, 1\)'),
    'A-rank-3': (
        dict(A=torch.zeros(3, 3, 3)),
        ValueError,
        r'A must be \(N,\) for maps or \(D, N\).*3, 3, 3',
    ),
    'A-rank-0': (dict(A=torch.tensor(-1.0)), ValueError, r'A must be \(N,\) for maps or \(D, N\) for tokens.*\(\)'),
    'A-size': (
        dict(A=lambda t: torch.zeros(*t.shape[:-1], 99)),
        ValueError,
        r'h0 must be \(batch, .*99.*to fit A, got',
    ),
    'h0-rank': (dict(h0=torch.zeros(4)), ValueError, r'h0 must be \(batch, .*to fit A, got \(4,\)'),
    'h0-channels': (dict(h0=torch.zeros(2, 99, 4)), ValueError, r'h0 must be .* to fit A, got \(2, 99, 4\)'),
    'x-rank-0': (dict(x=torch.tensor(1.0)), ValueError, r'x must .*\(\)'),
    'x-integer': (dict(x=lambda t: t.long()), TypeError, 'x must be .*(floating|float64).*got .*(int64|Long)'),
    'B-complex': (dict(B=lambda t: t.to(torch.complex64)), TypeError, 'B must be .*got .*(complex64|ComplexFloat)'),
    'A-bool': (dict(A=lambda t: t.bool()), TypeError, 'A must be .*got .*(bool|Bool)'),
    'h0-float8': (dict(h0=lambda t: t.to(torch.float8_e4m3fn)), TypeError, 'h0 must be .*got .*[fF]loat8'),
    'dt_bias-integer': (dict(dt_bias=lambda t: t.int()), TypeError, 'dt_bias must be .*got .*(int32|Int)'),
    'dt-meta': (dict(dt=lambda t: t.to('meta')), ValueError, 'dt is on meta, but the state is on'),
    'A-meta': (dict(A=lambda t: t.to('meta')), ValueError, 'A is on meta, but the state is on'),
}
WRONG_GRADIENTS = {
    'shape': (lambda t: t[:, :-1], ValueError, r'grad must have shape .*got'),
    'all-states': (lambda t: t.expand(2, *t.shape), ValueError, r'grad must have shape .*got \(2, '),
    'integer': (lambda t: t.long(), TypeError, 'grad must be .*got .*(int64|Long)'),
    'meta': (lambda t: t.to('meta'), ValueError, 'grad is on meta, but the state is on'),
}


def changed(inputs, change):
    device = inputs['h0'].device
    new = {name: value(inputs[name]) if callable(value) else value.to(device) for name, value in change.items()}
    return inputs | new


def refused_by_fakes(error, message):
    """Fake tensors of torch below 2.4 look at the devices before the op does, and say it in their own words."""
    if TORCH < (2, 4) and 'on meta' in message:
        return (error, RuntimeError), f'{message}|two different devices'
    return error, message


def faked(tensors):
    mode = FakeTensorMode()
    return {name: mode.from_tensor(t) for name, t in tensors.items()}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', WRONG)
@pytest.mark.parametrize('fake', [False, True], ids=['real', 'fake'])
def test_wrong_arguments(device, layout, name, fake):
    change, error, message = WRONG[name]
    inputs = sample_inputs(layout, depth=2, device=device, size=(4, 3), channels=4)
    wrong = changed(inputs, change)
    grad = torch.zeros_like(inputs['h0'])
    if fake:
        wrong = faked(wrong | dict(grad=grad))
        grad = wrong.pop('grad')
        error, message = refused_by_fakes(error, message)
    with pytest.raises(error, match=message):
        scan(wrong)
    with pytest.raises(error, match=message):
        scan_backward(grad, wrong, wanted=['x'])
    with pytest.raises(error, match=message.replace('h0 must', 'h0? must')):
        selective_scan(**wrong)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', WRONG_GRADIENTS)
@pytest.mark.parametrize('fake', [False, True], ids=['real', 'fake'])
def test_wrong_gradients(device, layout, name, fake):
    change, error, message = WRONG_GRADIENTS[name]
    inputs = sample_inputs(layout, depth=3, device=device)
    tensors = inputs | dict(grad=change(torch.zeros_like(inputs['h0'])))
    if fake:
        tensors = faked(tensors)
        error, message = refused_by_fakes(error, message)
    with pytest.raises(error, match=message):
        scan_backward(tensors.pop('grad'), tensors, wanted=['x'])


@pytest.mark.parametrize('fake', [False, True], ids=['real', 'fake'])
def test_gradient_of_a_missing_bias(device, fake):
    inputs = sample_inputs('map', depth=1, device=device)
    inputs.pop('dt_bias')
    tensors = inputs | dict(grad=torch.zeros_like(inputs['h0']))
    tensors = faked(tensors) if fake else tensors
    with pytest.raises(ValueError, match='dt_bias, which is None'):
        scan_backward(tensors.pop('grad'), tensors, wanted=['x', 'dt_bias'])


@pytest.mark.parametrize('layout', LAYOUTS)
def test_update_names_its_own_arguments(device, layout):
    """The update is the scan of one step; its errors speak of h and of shapes without that step."""
    inputs = sample_inputs(layout, device=device)
    with pytest.raises(ValueError, match=r'h must be .*to fit A'):
        selective_update(**inputs | dict(h=inputs['h'][:, :1]))
    with pytest.raises(ValueError, match=rf'x must have shape {re.escape(str(tuple(inputs["x"].shape)))}, got'):
        selective_update(**inputs | dict(x=inputs['x'][None]))
    with pytest.raises(TypeError, match=r'B must be a dense tensor of float64, .*, got int'):
        selective_update(**inputs | dict(B=1))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('make', ['sparse', 'csr', 'mkldnn', 'nested', 'list', 'number', 'none', 'numpy'])
def test_what_is_no_dense_tensor(device, name, make):
    inputs = sample_inputs('token', depth=2, device=device)
    tensor = inputs[name]
    wrong = {
        'sparse': lambda: tensor.to_sparse(),
        'csr': lambda: tensor.reshape(1, -1).to_sparse_csr(),
        'mkldnn': lambda: tensor.cpu().to_mkldnn(),
        'nested': lambda: torch.nested.nested_tensor([tensor, tensor]),
        'list': lambda: tensor.tolist(),
        'number': lambda: 1.0,
        'none': lambda: None,
        'numpy': lambda: tensor.cpu().numpy(),
    }[make]()
    if name == 'dt_bias' and make == 'none':
        assert scan(inputs | {name: wrong}).isfinite().all()
        return
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        scan(inputs | {name: wrong})
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        scan_backward(torch.zeros_like(inputs['h0']), inputs | {name: wrong}, wanted=['x'])


def mutation(tensor, dice):
    """A tensor that is wrong, or unusual, in one way."""
    kind = dice.randrange(9)
    if kind == 0:
        return tensor.unsqueeze(dice.randrange(tensor.dim() + 1))
    if kind == 1 and tensor.dim():
        return tensor.select(dice.randrange(tensor.dim()), 0) if tensor.numel() else tensor
    if kind == 2 and tensor.dim():
        axis = dice.randrange(tensor.dim())
        return tensor.narrow(axis, 0, dice.randrange(tensor.shape[axis] + 1))
    if kind == 3 and tensor.dim():
        return torch.cat([tensor, tensor], dim=dice.randrange(tensor.dim()))
    if kind == 4:
        dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.float32] * 2
        dtypes += [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2]
        return tensor.to(dice.choice(dtypes))
    if kind == 5 and tensor.dim() > 1:
        first, second = dice.sample(range(tensor.dim()), 2)
        return tensor.transpose(first, second)
    if kind == 6:
        return tensor.to('meta')
    if kind == 7 and tensor.dim():
        return tensor.flatten(dice.randrange(tensor.dim()), -1)
    return torch.randn([dice.randrange(4) for _ in range(dice.randrange(5))]).to(tensor.device, tensor.dtype)


def attempt(function):
    """The result, or what was raised."""
    try:
        return function(), None
    except Exception as error:  # which one is for the caller to judge
        return None, error


@pytest.mark.parametrize('seed', range(4))
def test_random_arguments(device, seed):
    """An exception that names an argument, the same under fake tensors, or a right result; and the process lives on."""
    dice = random.Random(seed)
    outcomes = {'right': 0, 'refused': 0}
    for _ in range(100):
        inputs = case(dice.choice(MEMORY), depth=dice.randrange(4), device=device, size=(2, 3), channels=3, state_dim=4)
        inputs['grad'] = random_like(inputs['h0'])
        if dice.random() < 0.3:
            inputs.pop('dt_bias')
        with torch.no_grad():
            chosen = dice.sample(sorted(inputs), dice.choice([1, 1, 1, 2, 3]))
            for name in chosen:
                inputs[name] = mutation(inputs[name], dice)
        requires_grad = dice.random() < 0.3
        inputs = {n: t.requires_grad_(requires_grad and t.is_floating_point()) for n, t in inputs.items()}
        options = dict(dt_softplus=dice.random() < 0.5, zoh=dice.random() < 0.5)
        wanted = [name for name in NAMES if name in inputs and dice.random() < 0.7]
        for backward in (False, True):

            def call(tensors, backward=backward, options=options, wanted=wanted):
                tensors = dict(tensors)
                grad = tensors.pop('grad')
                return scan_backward(grad, tensors, wanted=wanted, **options) if backward else scan(tensors, **options)

            described = {n: (tuple(t.shape), t.dtype, t.device.type) for n, t in inputs.items()} | options
            real, error = attempt(lambda: call(inputs))  # noqa: B023
            fake, fake_error = attempt(lambda: call(faked(inputs)))  # noqa: B023
            if TORCH < (2, 4) and 'two different devices' in str(fake_error):  # see refused_by_fakes
                fake_error = error
            assert (error is None) == (fake_error is None), f'{described}: {error!r}, fake tensors: {fake_error!r}'
            if error is not None:
                for raised in (error, fake_error):
                    assert isinstance(raised, (TypeError, ValueError)), f'{described}: {raised!r}'
                    assert re.match(rf'({"|".join(NAMES)}|grad) (must|is on)', str(raised)), f'{described}: {raised!r}'
                if len(chosen) == 1:  # of several mistakes, either side may name another one first
                    assert type(error) is type(fake_error), f'{described}: {error!r}, fake tensors: {fake_error!r}'
                    assert str(error).split()[:2] == str(fake_error).split()[:2], described
                outcomes['refused'] += 1
                continue
            outcomes['right'] += 1
            if inputs['h0'].device.type == 'meta':
                continue
            assert_right(real, fake, inputs, backward, options, described)
    assert min(outcomes.values()) > 15, outcomes


def assert_right(real, fake, inputs, backward, options, described):
    """Within the rounding of the coarsest type of the inputs: which one it is, other tests say."""
    tensors = {name: t.detach() for name, t in inputs.items()}
    grad = tensors.pop('grad')
    real, fake = (results if backward else {'h0': results} for results in (real, fake))
    expected = reference_gradients(grad, tensors, **options) if backward else {'h0': reference_scan(tensors, **options)}
    for name, actual in real.items():
        assert actual.dtype == tensors[name].dtype, described
        assert (fake[name].shape, fake[name].dtype) == (actual.shape, actual.dtype), described
        scale = expected[name].abs().max() if expected[name].numel() else 0.0
        assert_within(actual, expected[name], 0.05 * scale, f'{name} of {described}')


@pytest.mark.parametrize('name', sorted(CHANNEL))
def test_other_gpu_or_cpu_is_named(device, name):
    if device == 'cpu':
        pytest.skip('needs a second device')
    inputs = sample_inputs('map', depth=1, device=device)
    with pytest.raises(ValueError, match=r'is on cpu, but the state is on cuda|is on cuda.*, but the state is on cpu'):
        scan(inputs | {name: inputs[name].cpu()})
