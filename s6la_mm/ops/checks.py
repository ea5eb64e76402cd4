"""What the op's arguments must be. The compiled op says the same of itself (csrc/selective_scan.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

DISCRETIZATIONS = ('euler', 'zoh')
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensors(**tensors: object) -> None:
    """Raises a TypeError on the first argument that is no tensor of a supported type; the message names it."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            got = type(tensor).__name__
            if isinstance(tensor, Tensor):
                got = f'{tensor.dtype}, {tensor.layout}'
            raise TypeError(f'{name} must be a dense tensor of float64, float32, float16 or bfloat16, got {got}')


def check_arguments(
    h: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor | None, depth: tuple[int, ...], state: str
) -> None:
    """Raises on anything that does not fit the layout table of :mod:`s6la_mm.ops.selective_scan`.

    Args:
        h (Tensor): State.
        x (Tensor): Input.
        dt (Tensor): Step.
        A (Tensor): Diagonal of the state matrix, whose rank says which layout it is.
        B (Tensor): Input matrix.
        dt_bias (Tensor, optional): Bias of ``dt``.
        depth (tuple[int, ...]): Leading axes of x, dt and B: none for an update, (L,) for a scan.
        state (str): What the caller calls ``h``.

    Raises:
        TypeError: If an argument is not a dense tensor of a supported floating-point type.
        ValueError: If a shape or a device does not fit; the message names the argument, what it is, what fits.
    """
    tensors = {state: h, 'x': x, 'dt': dt, 'A': A, 'B': B}
    if dt_bias is not None:
        tensors['dt_bias'] = dt_bias
    check_tensors(**tensors)
    if A.dim() not in (1, 2):
        raise ValueError(f'A must be (N,) for maps or (D, N) for tokens, got shape {tuple(A.shape)}')
    if A.dim() == 2:
        if h.dim() != 3 or h.shape[1:] != A.shape:
            raise ValueError(f'{state} must be (batch, {A.shape[0]}, {A.shape[1]}) to fit A, got {tuple(h.shape)}')
        expected = dict(x=h.shape[:2], dt=h.shape[:2], B=(h.shape[0], h.shape[2]))
    else:
        if h.dim() < 2 or h.shape[1] != A.shape[0]:
            raise ValueError(f'{state} must be (batch, {A.shape[0]}, *space) to fit A, got {tuple(h.shape)}')
        expected = dict(x=h.shape, dt=h.shape, B=h.shape)
    expected = {name: (*depth, *shape) for name, shape in expected.items()}
    expected['dt_bias'] = A.shape[:1]
    for name, tensor in tensors.items():
        if tensor.device != h.device:
            raise ValueError(f'{name} is on {tensor.device}, but the state is on {h.device}: move it there')
        if name in expected and tuple(tensor.shape) != tuple(expected[name]):
            raise ValueError(f'{name} must have shape {tuple(expected[name])}, got {tuple(tensor.shape)}')


def check_gradient(grad: Tensor, h: Tensor, depth: tuple[int, ...]) -> None:
    """Raises if ``grad`` is not a gradient for the result of a scan: the states' shape and device."""
    check_tensors(grad=grad)
    if grad.device != h.device:
        raise ValueError(f'grad is on {grad.device}, but the state is on {h.device}: move it there')
    if tuple(grad.shape) != (*depth, *h.shape):
        raise ValueError(f'grad must have shape {(*depth, *h.shape)}, got {tuple(grad.shape)}')


def check_norm(norm_eps: float | None, x: Tensor, A: Tensor) -> None:
    """Raises where the compiled op does not normalise: it does for one step of the map layout."""
    if norm_eps is not None and (A.dim() != 1 or x.shape[0] != 1):
        raise ValueError(
            f'norm_eps needs one step of the map layout, got {x.shape[0]} steps and A of shape {tuple(A.shape)}'
        )
