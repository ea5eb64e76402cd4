"""What torch.library has to know of the compiled op beside its kernels: shapes, gradients, autocast, FLOPs.

Imported by :mod:`s6la_mm.ops.selective_scan` once the compiled module is loaded; registers, and exports nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..compat import register_autograd, register_fake, register_flop_formula
from . import reference
from .checks import check_arguments, check_gradient, check_norm

_OP = 's6la_mm::selective_scan'
_BACKWARD = 's6la_mm::selective_scan_backward'
# Kept for the life of the process: registrations end with the object.
_LIBRARY = torch.library.Library('s6la_mm', 'FRAGMENT')


def _channels_inner(x: Tensor, A: Tensor) -> bool:
    """The kernels' rule (selective_scan.cpp): maps whose channels lie side by side are handled that way."""
    return not reference.is_token_layout(A) and x.shape[2] > 1 and x.stride(2) == 1


def _empty(like: Tensor, shape: tuple[int, ...], channel: int | None) -> Tensor:
    """A result of the kernels: contiguous, with the axis ``channel`` innermost in memory if it is given."""
    if channel is None:
        return like.new_empty(shape)
    return like.new_empty((*shape[:channel], *shape[channel + 1 :], shape[channel])).movedim(-1, channel)


@register_fake(_OP)
def _fake(x, dt, A, B, h0, dt_bias, dt_softplus, zoh, return_states, norm_eps):
    check_arguments(h0, x, dt, A, B, dt_bias, depth=x.shape[:1], state='h0')
    check_norm(norm_eps, x, A)
    leading = 1 if return_states else 0
    shape = (*x.shape[:leading], *h0.shape)
    return _empty(h0, shape, leading + 1 if _channels_inner(x, A) else None)


@register_fake(_BACKWARD)
def _fake_backward(grad, x, dt, A, B, h0, dt_bias, dt_softplus, zoh, return_states, norm_eps, output_mask):
    check_arguments(h0, x, dt, A, B, dt_bias, depth=x.shape[:1], state='h0')
    check_norm(norm_eps, x, A)
    check_gradient(grad, h0, x.shape[:1] if return_states else ())
    if output_mask[5] and dt_bias is None:
        raise ValueError('output_mask asks for the gradient of dt_bias, which is None')
    channels_inner = _channels_inner(x, A)

    def result(wanted: bool, like: Tensor, channel: int | None) -> Tensor:
        return _empty(like, like.shape, channel if channels_inner else None) if wanted else like.new_empty(0)

    return (
        result(output_mask[0], x, 2),
        result(output_mask[1], dt, 2),
        A.new_empty(A.shape) if output_mask[2] else A.new_empty(0),
        result(output_mask[3], B, 2),
        result(output_mask[4], h0, 1),
        dt_bias.new_empty(dt_bias.shape) if output_mask[5] else (A if dt_bias is None else dt_bias).new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.dt_softplus, ctx.zoh, ctx.return_states, ctx.norm_eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors, options = ctx.saved_tensors, (ctx.dt_softplus, ctx.zoh, ctx.return_states, ctx.norm_eps)
    needed = ctx.needs_input_grad[:6]
    # With create_graph=True: the kernels have no second derivative, the reference has all (of no step there is none).
    if torch.is_grad_enabled() and tensors[0].shape[0] > 0:
        # Views, behind which the derivatives end: a state that an earlier step made from A would add that step's own.
        tensors = [tensor if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        wanted = [tensor for tensor, need in zip(tensors, needed) if need]
        arguments: list[Any] = [*tensors, *options]
        states = reference.scan(*arguments)
        grads = iter(torch.autograd.grad(states, wanted, grad, create_graph=True))
        return (*(next(grads) if need else None for need in needed), None, None, None, None)
    with torch.no_grad():
        grads = torch.ops.s6la_mm.selective_scan_backward(grad, *tensors, *options, needed)
    return (*(tensor if need else None for tensor, need in zip(grads, needed)), None, None, None, None)


register_autograd(_OP, _backward, setup_context=_setup_context)

# Under autocast the op takes its arguments as they come: it calculates in float32 whatever their types, so neither
# casting up (traffic) nor casting down (the state would lose what depth adds to it) would gain anything.
for _key in ('AutocastCPU', 'AutocastCUDA'):
    for _name in ('selective_scan', 'selective_scan_backward'):
        _LIBRARY.impl(_name, torch.library.fallthrough_kernel, _key)


@register_flop_formula(torch.ops.s6la_mm.selective_scan)
def _flops(x, dt, A, B, h0, *args, out_shape=None, **kwargs) -> int:
    """Per state number and step, each as one: bias, softplus, ΔA, exp, decay · h, gain · B, · x and their sum."""
    return 8 * x[0] * torch.Size(h0).numel()


@register_flop_formula(torch.ops.s6la_mm.selective_scan_backward)
def _flops_backward(grad, x, dt, A, B, h0, *args, out_shape=None, **kwargs) -> int:
    """The forward pass again, without its last sum, and 13 products and sums of the derivatives."""
    return 20 * x[0] * torch.Size(h0).numel()
