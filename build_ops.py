"""What setup.py compiles: the extension `s6la_mm._ext` from s6la_mm/ops/csrc, or one line that says why it does not.

Four steps, so that a test can check the decisions without a compiler: `read_switches` (what the environment asks for),
`find_facts` (what this machine offers), `make_plan` (what follows from both, or the error), `make_extension`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
CSRC = Path('s6la_mm/ops/csrc')  # relative, as setuptools wants its sources

# Where no GPU is seen: Turing, Ampere, Hopper; newer GPUs translate the last one's PTX when they first run it.
DEFAULT_ARCHS = ('7.5', '8.0', '8.6', '9.0')
# What ATen/cuda/CUDAContext.h includes and slim toolkits leave out.
CUDA_HEADERS = ('cusparse.h', 'cublas_v2.h', 'cusolverDn.h')
# pip copies what it builds to a folder of its own: from there nothing tells in which way it was asked for.
REBUILD = (
    'S6LA_WITH_OPS=1 pip install --no-build-isolation --no-deps --force-reinstall --no-cache-dir, '
    'and what it is to install (-e ., a URL, an archive)'
)


class BuildError(SystemExit):
    """A build that was asked for and cannot be done; the message holds the reason and the fix."""

    def __init__(self, reason: str) -> None:
        super().__init__(f's6la_mm: error: {reason}')


@dataclass(frozen=True)
class Switches:
    """What the environment asks for: True (do it or fail), False (leave it out), None (do it if possible)."""

    ops: bool | None = None
    cuda: bool | None = None
    archs: str = ''


@dataclass(frozen=True)
class Facts:
    """What this machine offers; empty where something is absent."""

    torch: str = ''
    torch_error: str = ''
    torch_cuda: str = ''
    mmcv: str = ''  # its op headers
    compiler: str = ''
    python_headers: bool = False
    cuda_home: str = ''  # where torch looks for a toolkit, or where it is
    nvcc: str = ''  # version
    nvcc_archs: tuple[str, ...] = ()
    gpu_archs: tuple[str, ...] = ()  # of the GPUs that torch sees here
    cuda_includes: tuple[str, ...] = ()  # where CUDA_HEADERS are that the toolkit lacks
    cuda_missing: tuple[str, ...] = ()  # CUDA_HEADERS that are nowhere


@dataclass(frozen=True)
class Plan:
    """What is compiled: nothing, the CPU kernels, or these and the CUDA kernels for `archs`."""

    ops: bool
    archs: str = ''
    note: str = ''


def read_switches(env: Mapping[str, str]) -> Switches:
    """Read S6LA_WITH_OPS, S6LA_WITH_CUDA, FORCE_CUDA (mmcv's and torch's name for the same) and TORCH_CUDA_ARCH_LIST.

    Raises:
        BuildError: If one is neither 0 nor 1, or two contradict each other.
    """

    def switch(name: str) -> bool | None:
        value = env.get(name, '')
        if value not in ('', '0', '1'):
            raise BuildError(f'{name}={value} is neither 0 nor 1. Set it to one of them, or unset it.')
        return {'': None, '0': False, '1': True}[value]

    ops, cuda = switch('S6LA_WITH_OPS'), switch('S6LA_WITH_CUDA')
    if switch('FORCE_CUDA'):
        if cuda is False:
            raise BuildError('FORCE_CUDA=1 and S6LA_WITH_CUDA=0 contradict each other. Unset one of them.')
        cuda = True
    if cuda and ops is False:
        raise BuildError('S6LA_WITH_OPS=0 contradicts FORCE_CUDA=1 and S6LA_WITH_CUDA=1. Unset one of them.')
    return Switches(ops, cuda, env.get('TORCH_CUDA_ARCH_LIST', ''))


def find_facts(env: Mapping[str, str]) -> Facts:
    """Look for torch, mmcv's headers, the C++ compiler and the CUDA toolkit. Nothing here needs a GPU."""
    found: dict[str, Any] = {}
    try:
        import torch

        gpus = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        found.update(
            torch=torch.__version__,
            torch_cuda=torch.version.cuda or '',
            gpu_archs=tuple(f'{major}.{minor}' for major, minor in sorted(gpus)),
        )
    except Exception as error:  # a torch that is there and broken raises OSError, RuntimeError ...
        found.update(torch_error=f'{type(error).__name__}: {error}')
    for folder in _package_folders('mmcv'):
        headers = folder / 'ops' / 'csrc' / 'common'
        if (headers / 'pytorch_device_registry.hpp').is_file():
            found.update(mmcv=str(headers))
    found.update(
        compiler=shutil.which((shlex.split(env.get('CXX', '')) or ['c++'])[0]) or '',
        python_headers=Path(sysconfig.get_path('include'), 'Python.h').is_file(),
    )
    if found.get('torch_cuda'):
        found.update(_find_toolkit(env))
    return Facts(**found)


def _find_toolkit(env: Mapping[str, str]) -> dict[str, Any]:
    from torch.utils.cpp_extension import CUDA_HOME

    if not CUDA_HOME:
        return {}
    home = Path(CUDA_HOME)
    nvcc = home / 'bin' / 'nvcc'
    release = re.search(r'release (\d+\.\d+)', _output(nvcc, '--version'))
    if release is None:
        return dict(cuda_home=str(home))
    if not (home / 'include' / 'cuda_runtime.h').is_file():
        # The nvcc on PATH is a link or script and the toolkit elsewhere: nvcc knows where.
        top = re.search(r'TOP=(.+)', _output(nvcc, '--dryrun', '-x', 'cu', '-c', os.devnull))
        home = Path(top.group(1)).resolve() if top else home
    archs = re.findall(r'compute_(\d+)(\d)\b', _output(nvcc, '--list-gpu-arch'))
    known = [home / 'include', *(Path(folder) for folder in env.get('CPATH', '').split(os.pathsep) if folder)]
    pip = [include for folder in _package_folders('nvidia') for include in sorted(folder.glob('*/include'))]
    includes, missing = [], []
    for header in CUDA_HEADERS:
        if any((folder / header).is_file() for folder in known):
            continue
        folder = next((str(folder) for folder in pip if (folder / header).is_file()), None)
        if folder is None:
            missing.append(header)
        elif folder not in includes:
            includes.append(folder)
    return dict(
        cuda_home=str(home),
        nvcc=release.group(1),
        nvcc_archs=tuple(f'{major}.{minor}' for major, minor in archs),
        cuda_includes=tuple(includes),
        cuda_missing=tuple(missing),
    )


def _package_folders(name: str) -> list[Path]:
    spec = find_spec(name)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def _output(*command: object) -> str:
    try:
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    except OSError:
        return ''
    return result.stdout + result.stderr


def make_plan(switches: Switches, facts: Facts) -> Plan:
    """Decide what is compiled.

    Raises:
        BuildError: If what was asked for cannot be done, or a CUDA toolkit is there that cannot be used.
    """
    if switches.ops is False:
        return Plan(ops=False, note='the op is not compiled (S6LA_WITH_OPS=0)')
    problem = _ops_problem(facts)
    if problem:
        if switches.ops or switches.cuda:
            raise BuildError(f'the op was asked for (S6LA_WITH_OPS=1 or FORCE_CUDA=1), but {problem}')
        return Plan(ops=False, note=f'the op is not compiled, PyTorch computes it, slower: {problem} Then: {REBUILD}')
    if switches.cuda is False:
        return Plan(ops=True)
    if not facts.torch_cuda or not facts.nvcc:
        if facts.torch_cuda:
            where = f'in {facts.cuda_home}/bin' if facts.cuda_home else 'on PATH or in /usr/local/cuda/bin'
            problem = f'there is no nvcc {where}. Install CUDA toolkit {facts.torch_cuda} and set CUDA_HOME to it.'
        else:
            problem = f'torch {facts.torch} was built without CUDA. Install a torch with CUDA.'
        if switches.cuda:
            raise BuildError(f'CUDA was asked for (FORCE_CUDA=1 or S6LA_WITH_CUDA=1), but {problem}')
        # Nobody with a CPU-only torch misses CUDA.
        return Plan(ops=True, note=f'the op is compiled for the CPU only: {problem}' if facts.torch_cuda else '')
    if facts.nvcc.split('.')[0] != facts.torch_cuda.split('.')[0]:
        raise BuildError(
            f'torch {facts.torch} was built with CUDA {facts.torch_cuda}, and {facts.cuda_home} is CUDA {facts.nvcc}. '
            f'Set CUDA_HOME to a toolkit {facts.torch_cuda}, or compile for the CPU only: S6LA_WITH_CUDA=0'
        )
    if facts.cuda_missing:
        raise BuildError(
            f'the CUDA toolkit {facts.cuda_home} lacks {", ".join(facts.cuda_missing)}. '
            'Install its development headers, or put a folder that has them on CPATH, '
            'or compile for the CPU only: S6LA_WITH_CUDA=0'
        )
    return Plan(ops=True, archs=choose_archs(switches.archs, facts))


def _ops_problem(facts: Facts) -> str:
    if facts.torch_error:
        return (
            f'torch does not import here ({facts.torch_error}). Install it first, and give pip '
            '--no-build-isolation, without which it hides the installed packages.'
        )
    if not facts.mmcv:
        return 'there is no mmcv with the headers of its ops (mmcv-lite has none). Install mmcv 2.1 first.'
    if not facts.compiler:
        return 'there is no C++ compiler (c++ or $CXX). Install one, on Debian and Ubuntu build-essential.'
    if not facts.python_headers:
        return "Python's headers are missing. Install them, on Debian and Ubuntu python3-dev."
    return ''


def choose_archs(given: str, facts: Facts) -> str:
    """The architectures as torch writes them, `7.5;9.0+PTX`.

    They are the given ones, else those of the GPUs of this machine, else the defaults that nvcc knows.

    Raises:
        BuildError: If nvcc cannot compile for a given one, or for none of the defaults.
    """
    offered = ';'.join(facts.nvcc_archs)
    fix = f'nvcc {facts.nvcc} compiles for {offered}; set TORCH_CUDA_ARCH_LIST to some of these, e.g. "9.0+PTX".'
    # A GPU that nvcc does not know is newer, and translates PTX; or older, and then the defaults do not help either.
    gpus = facts.gpu_archs if set(facts.gpu_archs) <= set(facts.nvcc_archs) else ()
    names = given.replace(' ', ';').replace(',', ';').split(';') if given else gpus or DEFAULT_ARCHS
    names = [name for name in names if name]
    known = [name for name in names if re.sub(r'[a-z]?(\+PTX)?$', '', name) in facts.nvcc_archs]
    if given and known != names:
        unknown = ', '.join(name for name in names if name not in known)
        raise BuildError(f'TORCH_CUDA_ARCH_LIST names {unknown}. {fix}')
    if not known:
        raise BuildError(f'no default architecture ({";".join(DEFAULT_ARCHS)}) fits. {fix}')
    return ';'.join(known) + ('' if given else '+PTX')


def make_extension(plan: Plan, facts: Facts) -> Any:
    """The setuptools extension of a plan with ops.

    The C++ standard is left to torch: its headers want C++17 or C++20, depending on the release. OpenMP is compiled
    in, since `at::parallel_for` is a header, and not linked, so that its symbols come from the runtime that torch
    brings: a second one would not obey `torch.set_num_threads`.
    """
    from torch.utils import cpp_extension

    def sources(pattern: str) -> list[str]:
        return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / CSRC).rglob(pattern))

    cpp = [path for path in sources('*.cpp') if plan.archs or '/cuda/' not in path]
    settings = dict(
        # All that it has of Python is a module's entry, in the limited API: one file for every Python from 3.10 on.
        py_limited_api=True,
        include_dirs=[facts.mmcv],
        # Without ninja, setuptools decides by these files whether to compile again.
        depends=[path for pattern in ('*.h', '*.hpp', '*.cuh') for path in sources(pattern)],
        define_macros=[],
        extra_compile_args={'cxx': ['-O2', '-g0', '-fopenmp'], 'nvcc': ['-O3']},
    )
    if not plan.archs:
        return cpp_extension.CppExtension('s6la_mm._ext', cpp, **settings)
    os.environ['TORCH_CUDA_ARCH_LIST'] = plan.archs
    cpp_extension.CUDA_HOME = facts.cuda_home
    settings['include_dirs'].append(f'{facts.mmcv}/cuda')
    settings['define_macros'].append(('MMCV_WITH_CUDA', None))
    settings['extra_compile_args']['cxx'].append(f'-DS6LA_CUDA_ARCHS="{plan.archs}"')
    extension = cpp_extension.CUDAExtension('s6la_mm._ext', cpp + sources('*.cu'), **settings)
    # Last, so that they do not hide headers of the toolkit.
    extension.include_dirs += facts.cuda_includes
    return extension


def setup_arguments() -> dict[str, Any]:
    """What setup.py passes to `setup()` for the extension; prints one line on what is compiled.

    Raises:
        BuildError: If a build that was asked for cannot be done.
    """
    switches = read_switches(os.environ)
    facts = Facts() if switches.ops is False else find_facts(os.environ)
    plan = make_plan(switches, facts)
    for_cuda = f' and for CUDA {facts.nvcc}, architectures {plan.archs}' if plan.archs else ''
    print(f's6la_mm: {plan.note or f"compiling the op for the CPU{for_cuda}"}', flush=True)
    if not plan.ops:
        return {}
    from torch.utils.cpp_extension import BuildExtension

    return dict(
        ext_modules=[make_extension(plan, facts)],
        cmdclass={'build_ext': BuildExtension},
        options={'bdist_wheel': {'py_limited_api': 'cp310'}},
    )
