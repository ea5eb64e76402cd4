"""What the tests of the backbones share: generic weights, and what must hold for all of them."""

from __future__ import annotations

import copy
import functools
import math
from unittest import mock

import torch
from torch import Tensor, nn

from s6la_mm.layers import S6LAMapCell, S6LATokenCell, StateCarry, StateRead, TokenRead
from s6la_mm.ops import selective_update

STATE_KEYS = ('initial_state', 'cells.', 'carries.')
READS = (StateRead, TokenRead)
CELLS = (S6LAMapCell, S6LATokenCell)


def is_state_key(key: str) -> bool:
    return key.startswith(STATE_KEYS) or key.endswith('.read.weight')


def images(batch: int = 2, size: tuple[int, int] = (19, 33), seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def randomize(module: nn.Module, reads: bool = True, seed: int = 0) -> nn.Module:
    """Gives every parameter a generic value: a gain of 1 or a bias of 0 hides a missing one. Reads read, or are 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.2 if parameter.dim() == 1 else 0.5 / math.sqrt(parameter[0].numel())))
        for read in (m for m in module.modules() if isinstance(m, READS)):
            noise = torch.randn(read.weight.shape, generator=generator)
            read.weight.copy_(noise * (0.3 if reads else 0.0))
    return module


def build_pair(plain_class: type, s6la_class: type, plain_options: dict, **options) -> tuple[nn.Module, nn.Module]:
    """A plain network with generic weights, and an S6LA one with the same weights and reads at zero; in eval mode."""
    plain = randomize(plain_class(**copy.deepcopy(plain_options)), seed=1)
    s6la = randomize(s6la_class(**copy.deepcopy(plain_options), state_dim=4, **options), reads=False, seed=2)
    missing, unexpected = s6la.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all(is_state_key(key) for key in missing)
    plain.eval()
    s6la.eval()
    return plain, s6la


def loss_of(outs: tuple[Tensor, ...]) -> Tensor:
    """A random projection: a plain sum has no gradient behind a layer norm."""
    generator = torch.Generator().manual_seed(7)
    return sum((out * torch.randn(out.shape, generator=generator)).mean() for out in outs)


def assert_neutral(plain: nn.Module, s6la: nn.Module, x: Tensor) -> None:
    """Same outputs and, for the shared weights, same gradients; then each read on its own changes the outputs."""
    outs, expected = s6la(x), plain(x)
    assert isinstance(outs, tuple) and len(outs) == len(expected)
    for actual, e in zip(outs, expected):
        assert e.ne(0).any()
        torch.testing.assert_close(actual, e, rtol=1e-5, atol=1e-6)
    loss_of(outs).backward()
    loss_of(expected).backward()
    gradients = {key: p.grad for key, p in s6la.named_parameters()}
    for key, parameter in plain.named_parameters():
        if parameter.grad is not None:  # a plain network may have unused ones, norms of stages that are no output
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-5, msg=key)
    with torch.no_grad():
        for read in (m for m in s6la.modules() if isinstance(m, READS)):
            nn.init.normal_(read.weight)
            assert (s6la(x)[-1] - expected[-1]).abs().max() > 1e-4 * expected[-1].abs().max()
            nn.init.zeros_(read.weight)


def assert_trainable_get_gradients(network: nn.Module, x: Tensor, unused: tuple[str, ...] = ()) -> None:
    """What DDP needs, and with reads that read, none of them zero."""
    loss_of(randomize(network).train()(x)).backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad or name.startswith(unused):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.ne(0).any(), name


def definition_layer(
    block: nn.Module, cell: S6LATokenCell, x: Tensor, h: Tensor, extra: int, *args
) -> tuple[Tensor, Tensor]:
    """The steps of "On tokens" in docs/definition.md, with what the code avoids: slices, einsum, concatenation."""
    x = block(x, *args)
    o = x[:, 0] if extra else x.sum(dim=1) / x.shape[1]
    u = o
    if cell.input_norm is not None:
        u = o / (o.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * cell.input_norm.weight
    dt, B = u @ cell.dt_proj.weight.T, u @ cell.B_proj.weight.T
    options = dict(dt_bias=cell.dt_bias, dt_softplus=True, discretization=cell.discretization)
    h = selective_update(h, u, dt, -cell.A_log.exp(), B, **options)
    C = torch.einsum('nd,bpd->bpn', block.read.weight, x[:, extra:])
    return torch.cat([x[:, :extra], x[:, extra:] + torch.einsum('bpn,bdn->bpd', C, h)], dim=1), h


def assert_with_cp_changes_nothing(network: nn.Module, checkpointed: nn.Module, x: Tensor) -> None:
    """Same outputs and gradients; the checkpointed layers run once more, in the backward pass only."""
    checkpointed.load_state_dict(randomize(network).state_dict())
    results = []
    for net in (network.train(), checkpointed.train()):
        calls = []
        for module in net.modules():
            if isinstance(module, (*CELLS, *READS)):
                module.register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        outs = net(x)
        forward = len(calls)
        loss_of(outs).backward()
        results.append((outs, {name: p.grad for name, p in net.named_parameters()}, forward, len(calls)))
    (outs, gradients, forward, total), (cp_outs, cp_gradients, cp_forward, cp_total) = results
    assert forward == total == cp_forward and cp_total == 2 * forward > 0
    torch.testing.assert_close(cp_outs, outs)
    torch.testing.assert_close(cp_gradients, gradients, rtol=1e-4, atol=1e-6)


def assert_bf16_autocast_is_close(network: nn.Module, x: Tensor) -> None:
    randomize(network).eval()
    for module in network.modules():  # ten times the plain network's residuals would only measure those
        if isinstance(module, READS):
            module.weight.data.mul_(0.3)
    expected = network(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = network(x)
    for actual, e in zip(outs, expected):
        assert 0 < (actual.float() - e).norm() < 0.02 * e.norm()
    loss_of(tuple(out.float() for out in outs)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def assert_state_is_initialised(network: nn.Module) -> None:
    """After init_weights, under whatever init_cfg: reads at zero, cells and carries as they initialise themselves."""
    assert network.initial_state.eq(0).all()
    for module in network.modules():
        if isinstance(module, READS):
            assert module.weight.eq(0).all()
        elif isinstance(module, StateCarry):
            assert 0.8 < module.weight.abs().max() * math.sqrt(module.in_features) <= 1
        elif isinstance(module, CELLS):
            rates = module.A_log.detach().exp()
            torch.testing.assert_close(rates, torch.arange(1.0, rates.shape[-1] + 1).expand_as(rates))
            dt = nn.functional.softplus(module.dt_bias)
            assert dt.min() >= 0.999e-3 and dt.max() <= 1.001e-1
            assert 0.8 < module.dt_proj.weight.abs().max() * math.sqrt(module.dt_proj.weight.shape[1]) <= 1.001


def parameters_on_meta(network_class: type, **options) -> dict[str, int]:
    """Sizes of the parameters by name, without memory for them."""
    # The bases read their drop path rates out of a linspace: those need values.
    linspace = functools.partial(torch.linspace, device='cpu')
    with torch.device('meta'), mock.patch('torch.linspace', linspace):
        network = network_class(**options)
    return {name: parameter.numel() for name, parameter in network.named_parameters()}
