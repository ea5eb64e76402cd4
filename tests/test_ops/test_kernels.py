"""The compiled forward op, straight through torch.ops, against the float64 reference; outputs are poisoned before."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_cases import (
    CHANNEL,
    HALF,
    MEMORY,
    NAMES,
    NORM,
    OP_DEVICES,
    OPTIONS,
    VIEWS,
    assert_forward,
    assert_within,
    case,
    channels_last_inputs,
    compute_eps,
    poisoned_memory,
    reference_scan,
    rounding_bound,
    scan,
    scan_backward,
    threads,
    views,
)
from op_inputs import DTYPES, sample_inputs

pytestmark = pytest.mark.parametrize('device', OP_DEVICES)


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


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
    assert_forward(inputs, **options)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('depth', [1, 3])
def test_float32_state_with_half_inputs(device, dtype, memory, depth):
    inputs = case(memory, depth=depth, dtype=dtype, device=device, size=(5, 7), channels=11, state_dim=9)
    inputs['h0'] = sample_inputs('token' if memory == 'token' else 'map', size=(5, 7), channels=11, state_dim=9)['h']
    inputs['h0'] = inputs['h0'].to(device)
    for return_states in (False, True):
        # The result is exact to float32: one that passed through the half type would not be.
        assert assert_forward(inputs, dt_softplus=True, return_states=return_states).dtype == torch.float32


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
            out = assert_forward(inputs, f'batch {batch}, {size}', dt_softplus=True)
            if memory != 'token':
                assert out.stride() == inputs['x'][0].stride() or min(out.shape) == 1


@pytest.mark.parametrize('memory', MEMORY)
def test_no_elements(device, memory):
    for sizes in (dict(batch=0), dict(state_dim=0), dict(channels=0), dict(size=(0, 3)), dict(size=(3, 0))):
        for depth, return_states in itertools.product([1, 3], [False, True]):
            inputs = case(memory, depth=depth, device=device, **sizes)
            out = scan(inputs, return_states=return_states)
            assert out.shape == (depth,) * return_states + inputs['h0'].shape
            grads = scan_backward(torch.ones_like(out), inputs, return_states=return_states)
            for name, grad in grads.items():
                assert grad.shape == inputs[name].shape
                if out.numel() == 0:
                    assert (grad == 0).all(), f'{sizes}: the sum over nothing is not zero in {name}'


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_no_steps(device, memory, dtype):
    inputs = case(memory, depth=0, dtype=dtype, device=device)
    assert scan(inputs, return_states=True).shape == (0, *inputs['h0'].shape)
    last = scan(inputs)
    assert torch.equal(last, inputs['h0'])
    grad = torch.randn_like(last)
    grads = scan_backward(grad, inputs)
    assert torch.equal(grads.pop('h0'), grad)
    for name, value in grads.items():
        assert value.shape == inputs[name].shape and (value == 0).all()


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('return_states', [True, False])
@pytest.mark.parametrize('depth', [1, 2, 15, 16, 17, 33, 64])
def test_steps(device, memory, return_states, depth):
    inputs = case(memory, depth=depth, device=device, size=(3, 7), channels=5, state_dim=9)
    assert_forward(inputs, dt_softplus=True, return_states=return_states)
    half = case(memory, depth=depth, device=device, dtype=torch.bfloat16, size=(3, 7), channels=5, state_dim=9)
    assert_forward(half, dt_softplus=True, return_states=return_states)


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_chain_of_updates_is_the_scan(device, memory, options):
    inputs = case(memory, depth=19, device=device, size=(5, 7), channels=5, state_dim=9)
    states = scan(inputs, return_states=True, **options)
    h = inputs['h0']
    for t in range(19):
        step = {name: inputs[name][t : t + 1] for name in ('x', 'dt', 'B')}
        h = scan(inputs | step | dict(h0=h), **options)
        torch.testing.assert_close(states[t], h, rtol=1e-6, atol=1e-6)
    # With or without the states, the arithmetic is the same.
    assert torch.equal(scan(inputs, **options), states[-1])


@pytest.mark.parametrize('memory', MEMORY)
@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize(('depth', 'dtype'), [(1, torch.bfloat16), (1, torch.float32), (3, torch.float32)])
@pytest.mark.parametrize(('size', 'state_dim'), [((5, 6), 6), ((4, 8), 8), ((4, 8), 16)])
def test_strides(device, memory, view, depth, dtype, size, state_dim):
    inputs = case(memory, depth=depth, device=device, dtype=dtype, size=size, channels=6, state_dim=state_dim)
    viewed = {name: dict(views(inputs[name], CHANNEL[name]))[view] for name in CHANNEL}
    assert_forward(inputs | viewed, 'all', dt_softplus=True, return_states=True)
    for name in CHANNEL:
        assert_forward(inputs | {name: viewed[name]}, name, dt_softplus=True)


def test_strides_of_parameters(device):
    for memory in MEMORY:
        inputs = case(memory, device=device)
        for name in ('A', 'dt_bias'):
            strided = inputs[name].repeat_interleave(2, dim=-1)[..., ::2]
            flat = inputs[name].flatten()[:1].view((1,) * inputs[name].dim()).expand_as(inputs[name])
            assert_forward(inputs | {name: strided}, f'{name}, every second', dt_softplus=True)
            assert_forward(inputs | {name: flat}, f'{name}, one number', dt_softplus=True)
    inputs['A'] = inputs['A'].t().contiguous().t()
    assert_forward(inputs, 'A transposed')


@pytest.mark.parametrize('size', [(5, 6), (2, 3, 5), (7,)])
@pytest.mark.parametrize('depth', [1, 3])
def test_mixed_memory_formats(device, size, depth):
    inputs = case('contiguous', depth=depth, device=device, size=size, state_dim=6)
    last = channels_last_inputs(inputs)
    for chosen in itertools.product([False, True], repeat=len(CHANNEL)):
        mixed = inputs | {name: last[name] for name, pick in zip(CHANNEL, chosen) if pick}
        out = assert_forward(mixed, str(chosen), return_states=True)
        assert out.is_contiguous() != chosen[0], 'the output follows x'


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (6, 1), ()])
def test_ambiguous_strides(device, memory, size):
    """Axes of size 1 may carry any stride; h as the backbone makes it, (1, N, 1, 1) expanded, too."""
    inputs = case(memory, device=device, size=size, state_dim=5, batch=1)
    for name in CHANNEL:
        stride = tuple(77 if n == 1 else s for n, s in zip(inputs[name].shape, inputs[name].stride()))
        inputs[name] = inputs[name].as_strided(inputs[name].shape, stride)
    assert_forward(inputs)
    inputs = case(memory, device=device, size=size, state_dim=5, batch=3)
    h0 = inputs['h0'][0].flatten()[:5].view(1, 5, *[1] * len(size)).expand_as(inputs['h0'])
    assert_forward(inputs | dict(h0=h0))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('memory', MEMORY)
def test_threads_and_runs_agree_bitwise(device, dtype, memory):
    sizes = dict(batch=16, channels=65, state_dim=33) if memory == 'token' else dict(state_dim=33, size=(23, 27))
    inputs = case(memory, depth=2, device=device, dtype=dtype, **sizes)
    results = []
    for number in (1, 2, 3, 1):
        with threads(number):
            out = scan(inputs, dt_softplus=True, return_states=True)
            grads = scan_backward(out, inputs, dt_softplus=True, return_states=True)
        results.append({'out': out, **grads})
    for result in results[1:]:
        for name, tensor in result.items():
            assert torch.equal(tensor, results[0][name]), name
            assert tensor.isfinite().all(), name
    assert_within(
        results[0]['out'],
        reference_scan(inputs, dt_softplus=True, return_states=True),
        2 * rounding_bound(inputs, compute_eps(inputs), dt_softplus=True, return_states=True),
    )


def test_inputs_stay_unchanged(device):
    for memory in MEMORY:
        inputs = case(memory, depth=3, device=device)
        before = {name: t.clone() for name, t in inputs.items()}
        out = scan(inputs, return_states=True)
        kept = out.clone()
        scan_backward(out, inputs, return_states=True)
        assert torch.equal(out, kept)
        assert all(torch.equal(inputs[name], t) for name, t in before.items())
        last = scan(inputs | {name: inputs[name][:0] for name in ('x', 'dt', 'B')})
        assert last.data_ptr() != inputs['h0'].data_ptr(), 'an op that is said to return a new tensor must not alias'


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('size', [(5, 7), (2, 3, 5), (1, 7), ()])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('options', [dict(return_states=True), NORM], ids=str)
def test_dense_maps_are_not_copied(device, memory, size, dtype, options):
    """Half the time of a kernel that is bound by memory would go into each copy."""
    inputs = case(memory, device=device, size=size, state_dim=5, dtype=dtype)
    inputs['h0'] = inputs['h0'].float()
    with torch.profiler.profile() as profile:
        out = scan(inputs, **options)
        scan_backward(out, inputs, **options)
    names = {event.key for event in profile.key_averages()}
    assert 's6la_mm::selective_scan_backward' in names
    assert not names & {'aten::clone', 'aten::contiguous', 'aten::_to_copy'}, names


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu(device):
    """The tensors decide where the kernels run, whatever the current device is."""
    inputs = case('contiguous', device='cuda:1')
    out = assert_forward(inputs)
    assert out.device.index == 1 and torch.cuda.current_device() == 0


@pytest.mark.parametrize('memory', ['contiguous', 'channels_last'])
def test_more_elements_than_32_bits_count(device, memory):
    free = torch.cuda.mem_get_info()[0] if device == 'cuda' else 0
    if free < 60e9:
        pytest.skip('needs a GPU with 60 GB')
    shape = (1, 8, 16400, 16400)
    inputs = {name: torch.ones(1, *shape, device=device, dtype=torch.bfloat16) for name in ('x', 'dt', 'B')}
    inputs |= dict(h0=torch.ones(shape, device=device, dtype=torch.bfloat16), A=-torch.ones(8, device=device))
    if memory == 'channels_last':  # the same numbers everywhere, so only the strides change
        stride = (8 * 16400**2, 1, 16400 * 8, 8)
        inputs |= {name: inputs[name].as_strided((1, *shape), (8 * 16400**2, *stride)) for name in ('x', 'dt', 'B')}
        inputs['h0'] = inputs['h0'].as_strided(shape, stride)
    inputs['h0'][0, -1, -1, -1] = 3
    out = scan(inputs)
    corner = {name: t[..., -1:, -2:] for name, t in inputs.items() if name != 'A'} | dict(A=inputs['A'])
    assert torch.equal(out[..., -1:, -2:], scan(corner))
    assert out.sum(dtype=torch.float64).item() > 0.9 * out[0, 0, 0, 0].item() * out.numel(), 'parts are not written'


CAPABILITY_SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
torch.set_num_threads(2)
results = {'capability': torch.backends.cpu.get_cpu_capability()}
for name, args, options in torch.load(sys.argv[2]):
    out = torch.ops.s6la_mm.selective_scan(*args, *options)
    grads = torch.ops.s6la_mm.selective_scan_backward(torch.ones_like(out), *args, *options, [True] * 6)
    results[name] = [out, *grads]
torch.save(results, sys.argv[3])
"""


def test_instruction_sets_agree(device, tmp_path):
    """The variants are compiled apart, so each is run in a process whose environment selects it."""
    if device != 'cpu':
        pytest.skip('the CPU kernels have the variants')
    from s6la_mm import _ext

    cases = []
    for memory, dtype, (options, depth) in itertools.product(MEMORY, DTYPES, zip([*OPTIONS, NORM], (1, 5, 1, 3, 1))):
        if options is NORM and memory == 'token':
            continue
        sizes = dict(batch=3, channels=17, state_dim=33, size=(9, 5), depth=depth)
        inputs = case(memory, dtype=dtype, **sizes)
        args = [inputs[name] for name in NAMES]
        options = dict(return_states=True, norm_eps=None) | options
        names = ('dt_softplus', 'zoh', 'return_states', 'norm_eps')
        cases.append((f'{memory} {dtype} {options} {depth}', args, [options[name] for name in names]))
    torch.save(cases, tmp_path / 'cases.pt')
    supported = ['default'] + [isa for isa in ('avx2', 'avx512') if isa.upper() in _supported_capabilities()]
    results = {}
    for isa in supported:
        environment = os.environ | {'ATEN_CPU_CAPABILITY': isa, 'OMP_NUM_THREADS': '2', 'CUDA_VISIBLE_DEVICES': ''}
        arguments = [_ext.__file__, tmp_path / 'cases.pt', tmp_path / isa]
        command = [sys.executable, '-c', CAPABILITY_SCRIPT, *map(str, arguments)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr[-2000:]
        results[isa] = torch.load(tmp_path / isa)
        assert results[isa].pop('capability').lower().replace('no avx', 'default') == isa  # its name before torch 2.2
    for name, args, options in cases:
        inputs = dict(zip(NAMES, args))
        options = dict(zip(('dt_softplus', 'zoh', 'return_states', 'norm_eps'), options))
        bound = 2 * rounding_bound(inputs, compute_eps(inputs), **options)
        for isa in supported:
            out, *grads = results[isa][name]
            assert_within(out, reference_scan(inputs, **options), bound, f'{name} {isa}')
            for grad, other in zip(grads, results['default'][name][1:]):
                tolerance = max(torch.finfo(grad.dtype).eps * 2, 200 * compute_eps(inputs))
                scale = other.abs().max().item()
                torch.testing.assert_close(grad, other, rtol=tolerance, atol=tolerance * scale)


def _supported_capabilities():
    """Up to which instruction set this processor goes (asking torch in this process: it knows only one)."""
    flags = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    return ['AVX2'] * (' avx2 ' in flags and ' fma ' in flags) + ['AVX512'] * (' avx512vl ' in flags)
