"""`python -m s6la_mm.collect_env`: what it prints about the op in each state, and about packages that are not there."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from s6la_mm import __version__, collect_env
from s6la_mm.ops import extension

CPU_BUILD = dict(compiler='GCC 12.2', torch='2.13.0', cpu_capability='AVX2', cuda=None, cuda_archs='')
CUDA_BUILD = dict(CPU_BUILD, cuda='13.0', cuda_archs='8.0;9.0+PTX')


@pytest.fixture
def op(monkeypatch):
    """Sets what s6la_mm.ops.extension says."""

    def pretend(*devices: str, error: str | None = None, build: dict | None = None) -> None:
        monkeypatch.setattr(extension, 'compiled_devices', lambda: frozenset(devices))
        monkeypatch.setattr(extension, 'load_error', lambda: error)
        monkeypatch.setattr(extension, 'build_info', lambda: build or {})

    return pretend


def test_everything_installed_is_named(capsys):
    collect_env.main()
    lines = dict(line.split(': ', 1) for line in capsys.readouterr().out.splitlines() if ': ' in line)
    assert lines['s6la_mm'] == __version__ and lines['PyTorch'] == torch.__version__
    assert {'Python', 'GCC', 'TorchVision', 'MMEngine', 'MMCV', 'MMCV Compiler', 's6la_mm op'} <= set(lines)
    for package in ('mmdet', 'mmseg', 'mmpretrain'):
        assert lines[package] == sys.modules[package].__version__
    if extension.compiled_devices():
        assert json.loads(torch.ops.s6la_mm.build_info())['compiler'] in lines['Compiled with']
    else:
        assert extension.load_error() in lines['s6la_mm op']


def test_op_that_is_not_compiled(op):
    op(error='it does not load: undefined symbol: _ZN2at4')
    lines = collect_env.describe_extension()
    assert lines == {
        's6la_mm op': 'plain PyTorch, since it does not load: undefined symbol: _ZN2at4',
        'To compile it': extension.build_command(),
    }


@pytest.mark.parametrize('torch_cuda', [None, '13.0'])
def test_op_for_the_cpu(op, monkeypatch, torch_cuda):
    monkeypatch.setattr(torch.version, 'cuda', torch_cuda)
    op('cpu', build=CPU_BUILD)
    lines = collect_env.describe_extension()
    assert lines['s6la_mm op'] == 'compiled for cpu'
    assert lines['Compiled with'] == 'GCC 12.2, torch 2.13.0'
    assert lines['CPU kernels'].startswith('AVX2')
    assert lines['CUDA kernels'] == 'not compiled'
    assert lines.get('To compile them', '').startswith('FORCE_CUDA=1 ') == (torch_cuda is not None)


def test_op_for_cuda(op):
    op('cuda', 'cpu', build=CUDA_BUILD)
    lines = collect_env.describe_extension()
    assert lines['s6la_mm op'] == 'compiled for cpu, cuda'
    assert lines['CUDA kernels'] == 'CUDA 13.0, architectures 8.0;9.0+PTX'
    assert 'To compile them' not in lines


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        (None, 'not installed'),
        ("raise AssertionError('MMCV==2.2.0 is incompatible')", 'does not import: AssertionError: MMCV==2.2.0'),
        ('import no_such_module', "does not import: No module named 'no_such_module'"),
    ],
)
def test_packages_that_do_not_import(source, words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(collect_env, 'PACKAGES', ('mm_stub',))
    if source:
        (tmp_path / 'mm_stub.py').write_text(source)
    assert collect_env.collect_env()['mm_stub'].startswith(words)
