"""Calls of the compiled op, the float64 reference and how far apart they may be; the tests of the op share it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from op_inputs import DEVICES, EPS, sample_inputs
from torch import Tensor

from s6la_mm.compat import TORCH
from s6la_mm.ops import reference
from s6la_mm.ops.extension import build_command, compiled_devices

Inputs = dict[str, Tensor]  # the op's tensors by name
NAMES = ('x', 'dt', 'A', 'B', 'h0', 'dt_bias')
OPTIONS = [dict(dt_softplus=softplus, zoh=zoh) for softplus, zoh in itertools.product([True, False], repeat=2)]
# As the map cell calls it.
NORM = dict(dt_softplus=True, zoh=False, norm_eps=1e-6)
MEMORY = ['contiguous', 'channels_last', 'token']
HALF = [torch.float16, torch.bfloat16]
# The axis that channels_last memory puts last.
CHANNEL = {'x': 2, 'dt': 2, 'B': 2, 'h0': 1}
# Every device, skipped where the extension has no kernels for it. CI sets S6LA_REQUIRE_OPS=1, and test_extension.py
# fails then, so nothing is skipped in silence.
OP_DEVICES = [
    pytest.param(
        device,
        marks=pytest.mark.skipif(
            device not in compiled_devices(), reason=f'no {device} kernels are compiled: {build_command()}'
        ),
    )
    for device in DEVICES
]


def scan(inputs: Inputs, dt_softplus=False, zoh=False, return_states=False, norm_eps=None) -> Tensor:
    """The compiled forward op on named inputs (of ``sample_inputs`` with a depth)."""
    tensors = [inputs.get(name) for name in NAMES]
    return torch.ops.s6la_mm.selective_scan(*tensors, dt_softplus, zoh, return_states, norm_eps)


def scan_backward(
    grad: Tensor, inputs: Inputs, dt_softplus=False, zoh=False, return_states=False, norm_eps=None, wanted=None
) -> Inputs:
    """The compiled backward op; returns the gradients by name, of ``wanted`` or of all inputs."""
    tensors = [inputs.get(name) for name in NAMES]
    wanted = [name for name in NAMES if inputs.get(name) is not None] if wanted is None else wanted
    mask = [name in wanted for name in NAMES]
    options = (dt_softplus, zoh, return_states, norm_eps)
    grads = torch.ops.s6la_mm.selective_scan_backward(grad, *tensors, *options, mask)
    assert all(g.shape == (0,) for g, asked in zip(grads, mask) if not asked)
    return {name: g for name, g, asked in zip(NAMES, grads, mask) if asked}


def reference_scan(inputs: Inputs, dt_softplus=False, zoh=False, return_states=False, norm_eps=None) -> Tensor:
    """The forward op in float64, from the formula."""
    inputs = normalized(inputs, norm_eps)
    x, A, B, h = (inputs[name] for name in ('x', 'A', 'B', 'h0'))
    _, delta = step_sizes(inputs, dt_softplus)
    states = []
    for t in range(x.shape[0]):
        h = reference.step(h, x[t], delta[t], A, B[t], None, False, zoh)
        states.append(h)
    if not return_states:
        return h
    return torch.stack(states) if states else h.new_zeros(0, *h.shape)


def normalized(inputs: Inputs, norm_eps: float | None) -> Inputs:
    """The inputs in float64, with x, dt and B divided by the root mean square of x over the channels."""
    inputs = {name: t.double() for name, t in inputs.items()}
    if norm_eps is None:
        return inputs
    rms = (inputs['x'].square().mean(2, keepdim=True) + norm_eps).sqrt()
    return inputs | {name: inputs[name] / rms for name in ('x', 'dt', 'B')}


def step_sizes(inputs: Inputs, dt_softplus: bool) -> tuple[Tensor, Tensor]:
    """dt + dt_bias and Δ in float64; softplus without its usual shortcut, which leaves out exp(-20)."""
    raw = inputs['dt'].double()
    if inputs.get('dt_bias') is not None:
        raw = raw + inputs['dt_bias'].double().reshape((-1,) + (1,) * (raw.dim() - 3))
    return raw, F.softplus(raw, threshold=700) if dt_softplus else raw


def reference_gradients(grad: Tensor, inputs: Inputs, **options) -> Inputs:
    """The backward op in float64: autograd through the formula."""
    leaves = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    out = reference_scan(leaves, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), grad.double(), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, grads))


def rounding_bound(
    inputs: Inputs, eps: float, dt_softplus=False, zoh=False, return_states=False, norm_eps=None
) -> Tensor:
    """How far arithmetic of relative precision ``eps`` may lead each output away from the exact one.

    The formula's own error analysis, carried through the steps: a relative error d of the exponent z changes exp(z)
    by |z| d, and softplus(s) of a negative s carries |s| times the error of s. The root mean square of some ten
    numbers is right to a few eps.
    """
    inputs = normalized({name: t.detach() for name, t in inputs.items()}, norm_eps)
    norm_error = 0 if norm_eps is None else 6
    token = reference.is_token_layout(inputs['A'])
    x, A, B, h = (inputs[name] for name in ('x', 'A', 'B', 'h0'))
    raw, delta = step_sizes(inputs, dt_softplus)
    step_error = 2 + (-raw).clamp(min=0) if dt_softplus else torch.ones_like(raw)
    step_error = step_error + norm_error * (inputs['dt'].abs() if dt_softplus else 1)
    if token:
        x, delta, B, step_error = x.unsqueeze(-1), delta.unsqueeze(-1), B.unsqueeze(-2), step_error.unsqueeze(-1)
    else:
        A = A.reshape((-1,) + (1,) * (h.dim() - 2))
    magnitude, error, errors = h.abs(), torch.zeros_like(h), []
    for t in range(x.shape[0]):
        z = delta[t] * A
        decay, gain = z.exp(), (torch.expm1(z) / A if zoh else delta[t]).abs()
        write = gain * (B[t] * x[t]).abs()
        roundings = (z.abs() * (step_error[t] + 1) + 2) * decay * magnitude
        roundings = roundings + (step_error[t] + 6 + 2 * norm_error) * (1 + z.clamp(min=0)) * write
        magnitude = decay * magnitude + write
        error = decay * error + eps * (roundings + magnitude)
        errors.append(error)
    return torch.stack(errors) if return_states and errors else error


def smallest(dtype: torch.dtype) -> float:
    """What flushing or rounding a subnormal number may cost."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps if dtype == torch.float16 else info.smallest_normal


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor | float, message: str = '') -> None:
    """Each element: equal where the expected one is not finite, else within the bound and one storage rounding."""
    dtype = actual.dtype
    assert actual.shape == expected.shape, f'{message}: {tuple(actual.shape)} instead of {tuple(expected.shape)}'
    actual, stored = actual.detach().double(), expected.detach().to(dtype).double()
    expected = expected.detach().double()
    same = torch.eq(actual, stored) | (actual.isnan() & stored.isnan())
    limit = bound + EPS[dtype] * expected.abs() + smallest(dtype)
    good = same | (stored.isfinite() & ((actual - expected).abs() <= limit))
    if not good.all():
        worst = ((actual - expected).abs() / limit).nan_to_num(nan=torch.inf, posinf=torch.inf).argmax()
        bad = (~good).sum().item()
        at = tuple(int(i) for i in torch.unravel_index(worst, actual.shape))
        raise AssertionError(
            f'{message}: {bad} of {good.numel()} differ; at {at} got {actual[at]}, expected {expected[at]} '
            f'(limit {torch.as_tensor(limit).expand_as(expected)[at]:.2e})'
        )


def compute_eps(inputs: Inputs) -> float:
    """Precision of the arithmetic: float64 if an input is."""
    return EPS[torch.float64 if any(t.dtype == torch.float64 for t in inputs.values()) else torch.float32]


def assert_forward(inputs: Inputs, message: str = '', **options) -> Tensor:
    """Compares the compiled forward op with the reference; returns its result."""
    out = scan(inputs, **options)
    assert out.dtype == inputs['h0'].dtype and out.device == inputs['x'].device
    bound = rounding_bound(inputs, compute_eps(inputs), **options)
    assert_within(out, reference_scan(inputs, **options), 2 * bound, message)
    return out


def assert_backward(grad: Tensor, inputs: Inputs, message: str = '', wanted=None, **options) -> Inputs:
    """Compares the compiled backward op with autograd through the reference; returns its gradients."""
    grads = scan_backward(grad, inputs, wanted=wanted, **options)
    expected = reference_gradients(grad, inputs, **options)
    # Sums of both signs cancel: what rounding does is measured by the sum of their magnitudes.
    positive = {name: t if name in ('dt', 'A', 'dt_bias') else t.abs() for name, t in inputs.items()}
    scale = reference_gradients(grad.abs(), positive, **options)
    largest = max(1.0, float(_largest_exponent(inputs, options)))
    for name, actual in grads.items():
        assert actual.dtype == inputs[name].dtype, f'{message}: gradient of {name} is {actual.dtype}'
        assert actual.device == inputs[name].device
        peak = scale[name].abs().max() if scale[name].numel() else 0.0
        bound = (16 + 2 * largest) * compute_eps(inputs) * (expected[name].abs() + peak)
        assert_within(actual, expected[name], bound, f'{message}: gradient of {name}')
    return grads


def _largest_exponent(inputs: Inputs, options: dict) -> Tensor:
    """A bound of |Δ A|, whose rounding error exp() multiplies."""
    _, delta = step_sizes(normalized(inputs, options.get('norm_eps')), options.get('dt_softplus', False))
    if not delta.numel():
        return torch.zeros(())
    return delta.abs().max() * inputs['A'].double().abs().max()


def random_like(tensor: Tensor, seed: int = 1) -> Tensor:
    """Normal numbers in the shape, dtype and device of a tensor (its gradient, say), contiguous."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)


def channels_last(tensor: Tensor, channel: int) -> Tensor:
    """The same numbers with the channel axis innermost in memory, at any rank."""
    return tensor.movedim(channel, -1).contiguous().movedim(-1, channel)


def channels_last_inputs(inputs: Inputs) -> Inputs:
    """Map inputs of the scan with x, dt, B and h0 in channels_last memory."""
    axis = {'x': 2, 'dt': 2, 'B': 2, 'h0': 1}
    return {name: channels_last(t, axis[name]) if name in axis else t for name, t in inputs.items()}


def case(memory: str, **sizes) -> Inputs:
    """Inputs of the scan in a memory format, or in the token layout."""
    inputs = sample_inputs('token' if memory == 'token' else 'map', **{'depth': 1, **sizes})
    return channels_last_inputs(inputs) if memory == 'channels_last' else inputs


def views(tensor: Tensor, channel: int) -> Iterator[tuple[str, Tensor]]:
    """The numbers of a tensor (or some of them, repeated) in memory that a kernel must not walk as if it were dense."""
    yield 'offset', torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    yield 'every second', tensor.repeat_interleave(2, dim=-1)[..., ::2]
    yield 'transposed', tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield 'half of the channels', torch.cat([tensor + 1, tensor], dim=channel).chunk(2, dim=channel)[1]
    doubled = torch.cat([tensor, tensor + 1], dim=channel)
    yield 'half of the channels, channels last', channels_last(doubled, channel).chunk(2, dim=channel)[0]
    yield 'a row inside a larger one', torch.nn.functional.pad(tensor, (1, 2))[..., 1:-2]
    # Beginning where a vector may begin, and not going on so.
    yield 'batches an odd number apart', _apart(tensor, channel)
    yield 'channels an odd number apart', _apart(tensor, min(channel + 1, tensor.dim() - 1))
    wider = channels_last(torch.cat([tensor, tensor.narrow(channel, 0, 1)], dim=channel), channel)
    yield 'pixels an odd number apart, channels last', wider.narrow(channel, 0, tensor.shape[channel])
    yield 'batch expanded', tensor.select(channel - 1, 0).unsqueeze(channel - 1).expand_as(tensor)
    yield 'channels expanded', tensor.narrow(channel, 0, 1).expand_as(tensor)
    yield 'one number', tensor.flatten()[:1].view((1,) * tensor.dim()).expand_as(tensor)


def _apart(tensor: Tensor, axis: int) -> Tensor:
    """The same numbers with one left out in memory after each block of the axes from ``axis`` on."""
    return F.pad(tensor.flatten(axis), (0, 1))[..., :-1].unflatten(axis, tensor.shape[axis:])


VIEWS = [name for name, _ in views(torch.zeros(1, 1, 2, 2, 2), 2)]


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Runs a block with so many intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills whatever torch.empty returns with NaN, so that an output element nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with contextlib.ExitStack() as stack:
            if TORCH >= (2, 2):  # older ones fill nothing
                filled = torch.utils.deterministic.fill_uninitialized_memory
                stack.callback(setattr, torch.utils.deterministic, 'fill_uninitialized_memory', filled)
                torch.utils.deterministic.fill_uninitialized_memory = True
                assert torch.empty(3).isnan().all()
            yield
    finally:
        torch.use_deterministic_algorithms(before)
