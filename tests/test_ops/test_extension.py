"""The compiled module: there where it must be, done without where it is not, counted by FLOP counters."""

import importlib.metadata
import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import Forked
from op_cases import OP_DEVICES, scan, scan_backward
from op_inputs import DEVICES, LAYOUTS, oracle_update, sample_inputs
from torch.utils.flop_counter import FlopCounterMode

from s6la_mm import __version__
from s6la_mm.backbones import S6LAResNet
from s6la_mm.compat import flop_counter_mode
from s6la_mm.ops import extension, selective_scan, selective_update

ROOT = Path(__file__).parents[2]


@pytest.mark.smoke
@pytest.mark.skipif(os.environ.get('S6LA_REQUIRE_OPS') != '1', reason='S6LA_REQUIRE_OPS=1 (CI) asks for the extension')
def test_extension_is_there_where_it_is_required():
    """Without it, most tests of the op skip: where it has been built, that would hide that it does not load."""
    assert extension.load_error() is None
    assert 'cpu' in extension.compiled_devices()
    if extension.build_info()['cuda']:
        assert set(DEVICES) <= extension.compiled_devices()


def test_state_of_the_extension_is_told():
    devices, error = extension.compiled_devices(), extension.load_error()
    assert devices <= {'cpu', 'cuda'}
    assert (error is None) == bool(devices), 'either there are kernels or there is a reason why not'
    info = extension.build_info()
    if error:
        assert info == {}
        return
    assert info['torch'].split('+')[0] == torch.__version__.split('+')[0]
    assert info['compiler'] and info['cpu_capability'] == torch.backends.cpu.get_cpu_capability()
    assert bool(info['cuda']) == bool(info['cuda_archs']) == ('cuda' in devices)
    assert info == json.loads(torch.ops.s6la_mm.build_info())


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr(extension, 'compiled_devices', frozenset)
    extension.warn_not_compiled.cache_clear()
    yield
    extension.warn_not_compiled.cache_clear()


@pytest.mark.usefixtures('without_kernels')
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_reference_takes_over_with_one_warning(layout, device):
    inputs = sample_inputs(layout, device=device, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(3):
            out = selective_update(**inputs, dt_softplus=True)
        scanned = sample_inputs(layout, depth=2, device=device)
        selective_scan(**scanned)
    messages = [str(w.message) for w in caught if 's6la_mm' in str(w.message)]
    assert len(messages) == 1, messages
    assert extension.build_command() in messages[0] and device in messages[0]
    torch.testing.assert_close(out.detach().cpu(), oracle_update(**inputs, dt_softplus=True))
    out.sum().backward()
    assert all(t.grad is not None for t in inputs.values())
    assert 'SelectiveScan' not in str(out.grad_fn) and 's6la_mm' not in str(out.grad_fn), 'the op ran after all'


@pytest.mark.usefixtures('without_kernels')
def test_backbone_is_the_same_without_kernels(monkeypatch):
    torch.manual_seed(0)
    model = S6LAResNet(depth=18, base_channels=8, state_dim=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.read.' in name:
                parameter.normal_(std=0.1)
    images = torch.rand(2, 3, 65, 49)
    results = []
    for patched in (True, False):
        if not patched:
            monkeypatch.undo()
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            outs = model(images)
        sum(out.square().mean() for out in outs).backward()
        results.append([*outs, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


HIDDEN = """
import sys, warnings

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == 's6la_mm._ext':
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocker())
import torch
from s6la_mm.backbones import S6LAResNet
from s6la_mm.ops import extension, selective_update
from op_inputs import sample_inputs, oracle_update

assert extension.compiled_devices() == frozenset() and extension.build_info() == {}
inputs = sample_inputs('map', dtype=torch.float64)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    out = selective_update(**inputs, dt_softplus=True)
    selective_update(**sample_inputs('token'))
    outs = S6LAResNet(depth=18, base_channels=8, state_dim=8)(torch.rand(1, 3, 33, 33))
    sum(o.sum() for o in outs).backward()
torch.testing.assert_close(out, oracle_update(**inputs, dt_softplus=True))
for message in caught:
    if 's6la_mm' in str(message.message):
        print('WARNING', message.message)
print('OP', hasattr(torch.ops.s6la_mm, 'selective_scan'))
"""


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (ModuleNotFoundError("No module named 's6la_mm._ext'", name='s6la_mm._ext'), 'has not been compiled'),
        (ImportError('undefined symbol: _ZN3c10'), 'undefined symbol: _ZN3c10'),
        (OSError('libcudart.so.12: cannot open'), 'libcudart.so.12: cannot open'),
    ],
)
def test_module_that_does_not_load(monkeypatch, error, reason):
    """Absent, made for another torch, or linked to a CUDA that is not here: the reason is kept, nothing is raised."""

    def import_module(name):
        raise error

    monkeypatch.setattr(importlib, 'import_module', import_module)
    devices, message = extension._load()
    assert devices == frozenset() and reason in message


@pytest.mark.skipif(extension.load_error() is not None, reason='the op is not compiled')
def test_module_for_another_torch(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.0.1+cu118')
    devices, message = extension._load()
    built_for = extension.build_info()['torch']
    assert devices == frozenset()
    assert message == f'it was compiled for torch {built_for}, and this is 2.0.1+cu118'


@pytest.mark.parametrize(
    ('source', 'target'),
    [
        (None, '--no-binary s6la_mm s6la_mm=={version}'),  # of an index
        (
            dict(url='file:///d/s6la_mm-1-py3-none-any.whl'),
            '--find-links file:///d --no-binary s6la_mm s6la_mm=={version}',
        ),
        (dict(url='file:///my%20files/s6la_mm-1.tar.gz'), 'file:///my%20files/s6la_mm-1.tar.gz'),
        (dict(url='file:///clone', dir_info={}), 'file:///clone'),
        (dict(url='https://host/s6la_mm', vcs_info=dict(vcs='git', commit_id='12ab')), 'git+https://host/s6la_mm@12ab'),
    ],
)
def test_command_fits_how_the_package_was_installed(monkeypatch, tmp_path, source, target):
    monkeypatch.setattr(extension, '__file__', str(tmp_path / 's6la_mm/ops/extension.py'))
    record = SimpleNamespace(read_text=lambda name: source and json.dumps(source))
    monkeypatch.setattr(importlib.metadata, 'distribution', lambda name: record)
    again = 'S6LA_WITH_OPS=1 pip install --no-build-isolation --no-deps --force-reinstall --no-cache-dir '
    assert extension.build_command.__wrapped__() == again + target.format(version=__version__)


def test_command_in_a_clone_is_for_the_clone():
    assert extension.build_command() == f'S6LA_WITH_OPS=1 pip install --no-build-isolation --no-deps -e {ROOT}'


def test_package_without_its_compiled_module(tmp_path):
    """In a process of its own: all works, one warning says what to do, and no op is there to be called."""
    process = Forked('-c', HIDDEN, log=tmp_path / 'log')
    assert process.wait() == 0, process.output[-3000:]
    lines = process.output.splitlines()
    shown = [line for line in lines if line.startswith('WARNING')]
    assert len(shown) == 1, shown
    assert extension.build_command() in shown[0] and 'has not been compiled' in shown[0]
    assert 'OP False' in lines


@pytest.mark.parametrize('device', OP_DEVICES)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_flops_of_the_op_are_counted(device, layout):
    """Linear in steps, batch and state; both passes; the same on every device and for every storage type."""

    def flops(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    counts = {}
    for depth, batch in ((1, 1), (3, 1), (3, 2)):
        inputs = sample_inputs(layout, depth=depth, batch=batch, device=device)
        grad = torch.ones_like(inputs['h0'])
        counts[depth, batch] = flops(lambda: scan(inputs)), flops(lambda: scan_backward(grad, inputs))  # noqa: B023
        half = sample_inputs(layout, depth=depth, batch=batch, device=device, dtype=torch.bfloat16)
        assert flops(lambda: scan(half, return_states=True)) == counts[depth, batch][0]  # noqa: B023
        leaves = {name: t.requires_grad_() for name, t in inputs.items()}
        both = flops(lambda: selective_scan(**leaves).sum().backward())  # noqa: B023
        assert both == sum(counts[depth, batch])
    forward, backward = counts[1, 1]
    number = sample_inputs(layout, batch=1)['h'].numel()
    # An exp, a product and a multiply-add at least; not more than the formula has operations.
    assert 4 * number <= forward <= 12 * number and forward < backward <= 40 * number
    assert counts[3, 1] == (3 * forward, 3 * backward) and counts[3, 2] == (6 * forward, 6 * backward)


@pytest.mark.parametrize('device', OP_DEVICES)
def test_flops_of_the_backbone_hold_the_op(device):
    # PyTorch's module tracker stumbles over parameters that are viewed under no_grad, so none may need a gradient.
    model = S6LAResNet(depth=18, base_channels=8, state_dim=8).to(device).requires_grad_(False)
    with flop_counter_mode(model) as counter:
        model(torch.rand(1, 3, 64, 64, device=device))
    counts = counter.get_flop_counts()
    op = torch.ops.s6la_mm.selective_scan
    assert counts['S6LAResNet.cells.layer1'][op] > 0
    assert counts['Global'][op] == sum(counts[f'S6LAResNet.cells.layer{i}'][op] for i in (1, 2, 3, 4))
