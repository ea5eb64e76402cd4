"""Time, bandwidth and extra memory of the state update alone: the compiled op, the eager formula, torch.compile's.

Everything runs in turn in each round of one process, next to a large ``copy_``; ratios are paired by round. Effective
bandwidth counts the inputs and outputs once: forward 5 state-sized tensors in the map layout (h, x, Δ, B and the next
state), backward 9 (those 4 and the incoming gradient, 4 gradients). Extra memory is what the peak has beyond inputs,
outputs and gradients: resident memory of a process of its own on the CPU, PyTorch's allocator on CUDA. On the CPU freed
memory is kept for the next call, so that the op is timed and not the system's page faults; ``--fresh-pages`` undoes it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from s6la_mm.benchmarks.timing import (
    PeakMemory,
    Spread,
    alternating_rounds,
    describe_device,
    paired_ratios,
    run_in_child,
    spread,
)
from s6la_mm.ops import extension, reference, selective_update

TYPES = ('float32', 'bfloat16', 'float16', 'float64')
MEMORY_FORMATS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)
MIN_SECONDS = 0.02  # of one timing: short calls are repeated
MIB = 2**20


def op(**inputs: Tensor) -> Tensor:
    """What a backbone calls."""
    return selective_update(**inputs, dt_softplus=True)


def eager(h: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, dt_bias: Tensor) -> Tensor:
    """The formula in float32 (float64), between casts: the same without the extension."""
    compute = torch.promote_types(h.dtype, torch.float32)
    cast = [tensor.to(compute) for tensor in (h, x, dt, A, B, dt_bias)]
    return reference.step(*cast, dt_softplus=True, zoh=False).to(h.dtype)


# Nothing is compiled before the first call.
FUNCTIONS = {'op': op, 'eager': eager, 'torch.compile': torch.compile(eager, dynamic=False)}


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shape', type=int, nargs=4, default=[2, 32, 200, 336], metavar=('B', 'N', 'H', 'W'))
    parser.add_argument('--token', type=int, nargs=3, metavar=('B', 'D', 'N'), help='the token layout, of this shape')
    parser.add_argument(
        '--layout', nargs='+', choices=MEMORY_FORMATS, default=list(MEMORY_FORMATS), help='of maps (default: both)'
    )
    parser.add_argument('--dtype', nargs='+', choices=TYPES, default=['float32'], help='storage of h, x, dt and B')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads')
    parser.add_argument('--rounds', type=int, default=20, help='timed rounds after 2 that are not counted')
    parser.add_argument(
        '--against', nargs='*', choices=list(FUNCTIONS)[1:], default=list(FUNCTIONS)[1:], help='(default: both)'
    )
    parser.add_argument(
        '--fresh-pages', action='store_true', help='CPU: let every call fault in the pages of its results'
    )
    parser.add_argument('--copy-mib', type=int, default=256, help='size of the copy_, which must exceed the caches')
    parser.add_argument('--json', type=Path, help='append the results to this file, as one line')
    args = parser.parse_args()
    if min(args.rounds, args.threads, args.copy_mib, *args.shape, *(args.token or [1])) < 1:
        parser.error('--rounds, --threads, --copy-mib, --shape and --token must be positive')
    return args


def make_inputs(args: argparse.Namespace, layout: str, dtype: str) -> tuple[dict[str, Tensor], Tensor]:
    """The arguments of ``selective_update``, which require gradients, and the gradient of its output."""
    if args.token:
        batch, channels, state_dim = args.token
        h, x, A, B = args.token, (batch, channels), (channels, state_dim), (batch, state_dim)
    else:
        h = x = B = args.shape
        A = (args.shape[1],)
    torch.manual_seed(0)
    random = partial(torch.randn, dtype=getattr(torch, dtype), device=args.device)
    parameter = partial(random, dtype=torch.promote_types(getattr(torch, dtype), torch.float32))
    inputs = dict(h=random(h), x=random(x), dt=random(x).abs(), A=-parameter(A).exp(), B=random(B))
    inputs['dt_bias'] = parameter(A[:1]).abs()
    for name, tensor in inputs.items():
        if tensor.dim() == 4:
            tensor = tensor.to(memory_format=MEMORY_FORMATS[layout])
        inputs[name] = tensor.requires_grad_()
    return inputs, torch.randn_like(inputs['h'])


def one_pass(function: Callable, inputs: dict[str, Tensor], grad: Tensor, backward: bool) -> tuple[Tensor, ...]:
    """The output of a forward pass without gradients, or output and all gradients of a forward and backward pass."""
    if not backward:
        with torch.no_grad():
            return (function(**inputs),)
    out = function(**inputs)
    return (out, *torch.autograd.grad(out, list(inputs.values()), grad))


def why_not(name: str, args: argparse.Namespace, layout: str, dtype: str) -> str | None:
    """Why a function cannot be measured, or None."""
    device = torch.device(args.device).type
    if name == 'op' and device not in extension.compiled_devices():
        return f'NOT COMPILED for {device}: {extension.load_error() or "the extension was built without it"}'
    try:
        for backward in (False, True):
            one_pass(FUNCTIONS[name], *make_inputs(args, layout, dtype), backward)
    except Exception as error:
        if name != 'torch.compile':  # which lacks a compiler, inductor or Triton in ways of its own
            raise
        reason = ' '.join(str(error).strip().split('\n\n')[0].split())  # torch 2.1 has it on a second line
        return f'skipped: {type(error).__name__}: {reason}'
    return None


def extra_memory(args: argparse.Namespace, layout: str, dtype: str, names: list[str]) -> dict[tuple[str, bool], int]:
    """Peak bytes of passes beyond inputs, outputs and gradients, by name and ``backward``; for a process of its own."""
    torch.set_num_threads(args.threads)
    extra = {}
    for name, backward in itertools.product(names, (False, True)):
        inputs, grad = make_inputs(args, layout, dtype)
        one_pass(FUNCTIONS[name], inputs, grad, backward)  # loads code and starts threads
        with PeakMemory(args.device) as peak:
            results = one_pass(FUNCTIONS[name], inputs, grad, backward)
        extra[name, backward] = max(peak.bytes - sum(tensor.nbytes for tensor in results), 0)
    return extra


def graphed(function: Callable[[], object], device: str) -> Callable[[], object]:
    """On CUDA, the function's kernels as a graph: launching them one by one would take longer than they do."""
    if not device.startswith('cuda'):
        return function
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a capture must not be the first run
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def measure(args: argparse.Namespace, layout: str, dtype: str) -> list[dict]:
    """Measures one layout and dtype, prints its tables, and returns their rows."""
    torch.compiler.reset()  # else the limit of recompilations is reached, and the rest would run eagerly
    inputs, grad = make_inputs(args, layout, dtype)
    reasons = {name: why_not(name, args, layout, dtype) for name in ('op', *args.against)}
    measured = [name for name, reason in reasons.items() if reason is None]
    extra_bytes = run_in_child(extra_memory, args, layout, dtype, measured)
    read, state = sum(tensor.nbytes for tensor in inputs.values()), grad.nbytes
    copy_from = torch.ones(args.copy_mib * MIB // 4, device=args.device)
    copy_to = torch.zeros_like(copy_from)
    shape = f'token layout {tuple(args.token)}' if args.token else f'map layout {tuple(args.shape)}, {layout}'
    print(f'\n{shape}, {dtype}; the state is {state / MIB:.2f} MiB')
    rows = []
    for label, backward, moved in (
        ('forward', False, read + state),
        ('forward + backward', True, (read + state) + (read + state) + read),
    ):
        timed = {
            name: graphed(partial(one_pass, FUNCTIONS[name], inputs, grad, backward), args.device) for name in measured
        }
        timed['copy_'] = partial(copy_to.copy_, copy_from)
        times = alternating_rounds(timed, args.rounds, args.device, MIN_SECONDS)
        print(f'{label:<20}{"ms":>9}  {"eager / it":<25}{"compile / it":<25}{"GB/s":>7}  {"of copy_":<20}extra memory')
        for name, reason in reasons.items():
            if reason is not None:
                print(f'  {name:<18}{reason}')
                continue
            mine = times[name]
            row = dict(layout=layout, dtype=dtype, passes=label, what=name, ms=spread(mine).scaled(1e3))
            for base in ('eager', 'torch.compile'):
                row[f'{base} / it'] = paired_ratios(times[base], mine) if base in times and base != name else None
            row['gb_per_s'] = moved / spread(mine).median / 1e9
            # A rate is bytes over time, so a ratio of rates is the other ratio of times.
            row['of_copy'] = paired_ratios(times['copy_'], mine).scaled(moved / (2 * copy_from.nbytes))
            row['extra_bytes'] = extra = extra_bytes[name, backward]
            rows.append(row)
            print(
                f'  {name:<18}{row["ms"].median:>9.3f}  '
                + ''.join(f'{row[f"{base} / it"] or ""!s:<25}' for base in ('eager', 'torch.compile'))
                + f'{row["gb_per_s"]:>7.1f}  {percent(row["of_copy"]):<20}'
                + f'{extra / MIB:.2f} MiB = {extra / state:.2f} states'
            )
        copied = spread(times['copy_']).median
        print(f'  {"copy_":<18}{copied * 1e3:>9.3f}  {"":50}{2 * copy_from.nbytes / copied / 1e9:>7.1f}')
    return rows


def percent(share: Spread) -> str:
    """A spread of shares in percent."""
    return f'{share.median:.0%} [{share.low:.0%} .. {share.high:.0%}]'


def keep_freed_memory() -> bool:
    """Lets glibc's malloc keep what is freed, for the rest of the process, as PyTorch's allocator on CUDA does.

    By default large blocks go back to the system and are faulted in anew, which can take as long as a memory-bound
    operation that writes them: 27 of 59 ms CPU time in a forward and backward pass of the state update, where measured.

    Returns:
        bool: Whether there is such a malloc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, 'mallopt'):
        return False
    trim_threshold, mmap_max = -1, -4  # malloc.h
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))


def main() -> None:
    """Measures and prints the tables."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    on_cpu = not args.device.startswith('cuda')
    about = dict(
        device=describe_device(args.device),
        torch=torch.__version__,
        keeps_freed_memory=on_cpu and not args.fresh_pages and keep_freed_memory(),
        extension=extension.build_info() if extension.load_error() is None else extension.load_error(),
        rounds=args.rounds,
    )
    print('selective_update, softplus and bias fused, Euler')
    print('\n'.join(f'{key}: {value}' for key, value in about.items()))
    print('medians, [min .. max] of the ratios paired by round' + ('' if on_cpu else '; kernels as CUDA graphs'))
    layouts = args.layout if args.token is None else ['token']
    rows = [row for layout in layouts for dtype in args.dtype for row in measure(args, layout, dtype)]
    if args.json:
        shape = args.token or args.shape
        with args.json.open('a') as file:
            print(json.dumps(about | dict(shape=shape, copy_mib=args.copy_mib, rows=rows)), file=file)


if __name__ == '__main__':
    main()
