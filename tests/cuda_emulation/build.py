"""Compiles the op with its CUDA kernels for the CPU (include/cuda_emulation.h says how they run there).

``build()`` returns the path of a module that takes the place of ``s6la_mm._ext``: the same operators, whose CPU kernels
are the emulated CUDA ones. Modules and objects stay in the user's cache under the hash of what they are made from.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / 's6la_mm' / 'ops' / 'csrc'
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 's6la_mm' / 'cuda_emulation'
SANITIZE = '-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all -fno-omit-frame-pointer'
FLAVOURS = {
    'fast': ['-O2', '-mfma'],
    'sanitized': ['-O1', '-g1', *SANITIZE.split()],
    # Automatic variables start as a pattern: one that is read before it is set shows in the numbers.
    'unoptimised': ['-O0', '-ftrivial-auto-var-init=pattern'],
}


def missing() -> str:
    """Why nothing can be built here; empty if it can."""
    if platform.system() != 'Linux' or platform.machine() != 'x86_64':
        return 'the emulation runs on x86-64 Linux'
    if shutil.which(_compiler()) is None:
        return f'there is no C++ compiler {_compiler()}'
    return '' if _mmcv_headers().is_dir() else "mmcv's op headers are not installed"


def build(flavour: str = 'fast', csrc: Path = CSRC, changed: tuple[str, ...] = ()) -> Path:
    """Compiles what is not in the cache yet.

    Args:
        flavour (str): Key of ``FLAVOURS``. Defaults to ``'fast'``.
        csrc (Path): Another folder, for the sources that are named in ``changed``. Defaults to that of the package.
        changed (tuple[str, ...]): File names in ``csrc/cuda``. Defaults to none.

    Returns:
        Path: The module.

    Raises:
        RuntimeError: If the compiler refuses; holds the end of what it said.
    """
    sources = [csrc / 'cuda' / name for name in changed]
    sources += [path for path in _sources() if path.name not in changed]
    # What is changed comes first: of a function that several objects hold, the linker takes the first.
    objects = [_compile(source, flavour) for source in sources]
    module = CACHE / f'{_hash(flavour, *(path.name for path in objects))}.so'
    folders = library_paths()
    libraries = [f'-L{folder}' for folder in folders] + [f'-Wl,-rpath,{folder}' for folder in folders]
    libraries += ['-lc10', '-ltorch_cpu', '-ltorch', '-ltorch_python']
    return _run(module, '-shared', *FLAVOURS[flavour], *map(str, objects), *libraries)


def environment(flavour: str, reports: Path) -> dict[str, str]:
    """Variables that a process needs which loads a module of this flavour; sanitizers write to ``reports``.*."""
    if flavour != 'sanitized':
        return {}
    # The runtimes must come before everything else; libstdc++ too, or the first C++ exception finds no __cxa_throw.
    libraries = ('libasan.so', 'libubsan.so', 'libstdc++.so')
    found = [
        subprocess.check_output([_compiler(), f'-print-file-name={name}'], text=True).strip() for name in libraries
    ]
    return {
        'LD_PRELOAD': ':'.join(found),
        'ASAN_OPTIONS': f'detect_leaks=0:allocator_may_return_null=1:log_path={reports}',
        'UBSAN_OPTIONS': f'print_stacktrace=1:halt_on_error=1:log_path={reports}',
    }


def _sources() -> list[Path]:
    cuda = CSRC / 'cuda'
    return [CSRC / 'selective_scan.cpp', *sorted([*cuda.glob('*.cu'), *cuda.glob('*.cpp')])]


def _compile(source: Path, flavour: str) -> Path:
    csrc = source.parent.parent if source.parent.name == 'cuda' else source.parent
    headers = [path for pattern in ('*.h', '*.cuh') for path in sorted(csrc.rglob(pattern))]
    ours = sorted(path for path in (HERE / 'include').rglob('*') if path.is_file())
    texts = [path.read_bytes() for path in [source, *headers, *ours]]
    language = ['-x', 'c++'] if source.suffix == '.cu' else []
    system = [*include_paths(), _mmcv_headers(), sysconfig.get_path('include')]
    includes = [f'-I{HERE / "include"}', *(argument for folder in system for argument in ('-isystem', str(folder)))]
    # torch's headers want C++17 or C++20, depending on the release, and all can be read as the newer one; its strings
    # are of one of two kinds. Device code reads numbers of all types through words of 16 bytes, which host compilers
    # must be allowed to see.
    flags = [
        '-std=c++20',
        f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}',
        '-fno-strict-aliasing',
        '-fPIC',
        '-Wall',
        '-Wno-unknown-pragmas',
        *FLAVOURS[flavour],
        *includes,
    ]
    key = _hash(flavour, torch.__version__, _compiler(), source.name, *texts)
    return _run(CACHE / f'{source.stem}-{key}.o', *flags, *includes, *language, '-c', str(source))


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in (*map(str, FLAVOURS.items()), *parts):
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b'\0')
    return digest.hexdigest()[:16]


def _run(target: Path, *arguments: str) -> Path:
    """The compiler, unless its result is there; two processes may do the same at once."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent)
    os.close(handle)
    run = subprocess.run([_compiler(), *arguments, '-o', name], capture_output=True, text=True)
    if run.returncode:
        os.unlink(name)
        raise RuntimeError(f'{_compiler()} {" ".join(arguments)}\n{run.stderr[-6000:]}')
    os.replace(name, target)
    return target


def _compiler() -> str:
    return os.environ.get('CXX', 'g++')


def _mmcv_headers() -> Path:
    spec = find_spec('mmcv')
    return Path(next(iter(spec.submodule_search_locations)) if spec else '', 'ops', 'csrc', 'common')
