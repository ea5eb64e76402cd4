"""Decisions of build_ops.py: which kernels setup.py compiles, and what it says when it cannot. Nothing is compiled."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
build = SimpleNamespace(**runpy.run_path(str(ROOT / 'build_ops.py')))
CPU_MACHINE = dict(torch='2.13.0+cpu', mmcv='/mmcv/common', compiler='/usr/bin/c++', python_headers=True)
CUDA_MACHINE = dict(
    CPU_MACHINE,
    torch='2.13.0+cu130',
    torch_cuda='13.0',
    cuda_home='/opt/cuda',
    nvcc='13.0',
    nvcc_archs=('7.5', '8.0', '8.6', '9.0', '10.0'),
)
NO_NVCC = dict(CUDA_MACHINE, nvcc='', nvcc_archs=())
ALL_ARCHS = '7.5;8.0;8.6;9.0+PTX'


def plan(machine: dict, **env: str):
    return build.make_plan(build.read_switches(env), build.Facts(**machine))


def refusal(machine: dict, **env: str) -> str:
    """The message of a build that must be refused."""
    with pytest.raises(SystemExit) as error:
        plan(machine, **env)
    return str(error.value)


@pytest.mark.parametrize(
    ('machine', 'env', 'ops', 'archs'),
    [
        (CPU_MACHINE, {}, True, ''),
        (CPU_MACHINE, {'S6LA_WITH_OPS': '1'}, True, ''),
        (CPU_MACHINE, {'S6LA_WITH_OPS': '0'}, False, ''),
        (CUDA_MACHINE, {}, True, ALL_ARCHS),
        (CUDA_MACHINE, {'S6LA_WITH_OPS': '1'}, True, ALL_ARCHS),
        (CUDA_MACHINE, {'FORCE_CUDA': '1'}, True, ALL_ARCHS),
        (CUDA_MACHINE, {'FORCE_CUDA': '0'}, True, ALL_ARCHS),
        (CUDA_MACHINE, {'S6LA_WITH_CUDA': '1'}, True, ALL_ARCHS),
        (CUDA_MACHINE, {'S6LA_WITH_CUDA': ''}, True, ALL_ARCHS),
        (CUDA_MACHINE, {'S6LA_WITH_CUDA': '0'}, True, ''),
        (CUDA_MACHINE, {'S6LA_WITH_CUDA': '0', 'FORCE_CUDA': '0'}, True, ''),
        (CUDA_MACHINE, {'TORCH_CUDA_ARCH_LIST': '9.0'}, True, '9.0'),
        (CUDA_MACHINE, {'S6LA_WITH_OPS': '0', 'S6LA_WITH_CUDA': '0'}, False, ''),
        (NO_NVCC, {'S6LA_WITH_OPS': '1'}, True, ''),
        (dict(CUDA_MACHINE, nvcc='13.2'), {}, True, ALL_ARCHS),
        (dict(CUDA_MACHINE, nvcc='12.8', cuda_missing=('cusparse.h',)), {'S6LA_WITH_CUDA': '0'}, True, ''),
        ({}, {'S6LA_WITH_OPS': '0'}, False, ''),
    ],
)
def test_plan(machine, env, ops, archs):
    result = plan(machine, **env)
    assert (result.ops, result.archs) == (ops, archs)


@pytest.mark.parametrize(
    ('env', 'words'),
    [
        ({'S6LA_WITH_OPS': 'yes'}, ['S6LA_WITH_OPS=yes', 'neither 0 nor 1']),
        ({'S6LA_WITH_CUDA': '2'}, ['S6LA_WITH_CUDA=2', 'neither 0 nor 1']),
        ({'FORCE_CUDA': 'ON'}, ['FORCE_CUDA=ON', 'neither 0 nor 1']),
        ({'FORCE_CUDA': '1', 'S6LA_WITH_CUDA': '0'}, ['FORCE_CUDA=1 and S6LA_WITH_CUDA=0 contradict', 'Unset']),
        ({'FORCE_CUDA': '1', 'S6LA_WITH_OPS': '0'}, ['S6LA_WITH_OPS=0 contradicts FORCE_CUDA=1', 'Unset']),
        ({'S6LA_WITH_CUDA': '1', 'S6LA_WITH_OPS': '0'}, ['S6LA_WITH_OPS=0 contradicts', 'S6LA_WITH_CUDA=1', 'Unset']),
    ],
)
def test_wrong_and_contradictory_variables_are_refused(env, words):
    message = refusal(CUDA_MACHINE, **env)
    assert message.startswith('s6la_mm: error: ')
    for word in words:
        assert word in message


LACKS = [
    (dict(torch='', torch_error="ModuleNotFoundError: No module named 'torch'"), ["'torch'", '--no-build-isolation']),
    (dict(mmcv=''), ['no mmcv with the headers of its ops', 'Install mmcv 2.1']),
    (dict(compiler=''), ['no C++ compiler', 'build-essential']),
    (dict(python_headers=False), ["Python's headers are missing", 'python3-dev']),
]


@pytest.mark.parametrize(('lack', 'words'), LACKS)
def test_without_its_requirements_the_op_is_left_out_with_a_note(lack, words):
    result = plan({**CUDA_MACHINE, **lack})
    assert not result.ops
    assert '\n' not in result.note
    command = (
        'S6LA_WITH_OPS=1 pip install --no-build-isolation --no-deps --force-reinstall --no-cache-dir, and what it is'
    )
    for word in [*words, 'not compiled', 'PyTorch computes it', command]:
        assert word in result.note


@pytest.mark.parametrize('switch', ['S6LA_WITH_OPS', 'FORCE_CUDA', 'S6LA_WITH_CUDA'])
@pytest.mark.parametrize(('lack', 'words'), LACKS)
def test_without_its_requirements_a_requested_op_is_refused(lack, words, switch):
    message = refusal({**CUDA_MACHINE, **lack}, **{switch: '1'})
    assert switch != 'S6LA_WITH_CUDA' or 'FORCE_CUDA=1' in message
    for word in ['error', 'was asked for', *words]:
        assert word in message


@pytest.mark.parametrize('switch', ['FORCE_CUDA', 'S6LA_WITH_CUDA'])
@pytest.mark.parametrize(
    ('machine', 'words'),
    [
        (CPU_MACHINE, ['torch 2.13.0+cpu was built without CUDA', 'Install a torch with CUDA']),
        (NO_NVCC, ['no nvcc in /opt/cuda/bin', 'Install CUDA toolkit 13.0', 'CUDA_HOME']),
        (dict(NO_NVCC, cuda_home=''), ['no nvcc on PATH or in /usr/local/cuda/bin', 'Install CUDA toolkit 13.0']),
    ],
)
def test_requested_cuda_that_is_absent_is_refused(machine, words, switch):
    message = refusal(machine, **{switch: '1'})
    for word in ['error', 'CUDA was asked for', *words]:
        assert word in message


def test_absent_nvcc_is_a_note():
    note = plan(NO_NVCC).note
    assert 'CPU only' in note and 'no nvcc in /opt/cuda/bin' in note and 'CUDA toolkit 13.0' in note
    assert plan(CPU_MACHINE).note == '', 'who has a torch without CUDA misses nothing'


@pytest.mark.parametrize('env', [{}, {'FORCE_CUDA': '1'}, {'S6LA_WITH_OPS': '1'}])
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(nvcc='12.8'), ['built with CUDA 13.0', '/opt/cuda is CUDA 12.8', 'a toolkit 13.0']),
        (dict(cuda_missing=('cusparse.h', 'cublas_v2.h')), ['/opt/cuda lacks cusparse.h, cublas_v2.h', 'CPATH']),
    ],
)
def test_toolkit_that_cannot_be_used_is_refused_always(change, words, env):
    message = refusal({**CUDA_MACHINE, **change}, **env)
    for word in ['error', 'S6LA_WITH_CUDA=0', *words]:
        assert word in message


@pytest.mark.parametrize(
    ('given', 'offered', 'expected'),
    [
        ('', ('7.5', '8.0', '8.6', '9.0', '12.0'), ALL_ARCHS),
        ('', ('7.0', '7.5', '8.0'), '7.5;8.0+PTX'),
        ('', ('9.0', '10.0'), '9.0+PTX'),
        ('9.0', ('8.0', '9.0'), '9.0'),
        ('8.0 9.0a+PTX', ('8.0', '9.0'), '8.0;9.0a+PTX'),
        ('8.0;;10.0+PTX;', ('8.0', '10.0'), '8.0;10.0+PTX'),
    ],
)
def test_architectures(given, offered, expected):
    facts = build.Facts(nvcc='13.0', nvcc_archs=offered)
    assert build.choose_archs(given, facts) == expected


@pytest.mark.parametrize(
    ('given', 'gpus', 'expected'),
    [
        ('', ('9.0',), '9.0+PTX'),
        ('', ('8.0', '8.6'), '8.0;8.6+PTX'),
        ('8.0', ('9.0',), '8.0'),
        ('', ('12.1',), ALL_ARCHS),  # newer than this nvcc: PTX serves it
    ],
)
def test_architectures_of_the_gpus_of_this_machine_are_the_default(given, gpus, expected):
    facts = build.Facts(nvcc='13.0', nvcc_archs=CUDA_MACHINE['nvcc_archs'], gpu_archs=gpus)
    assert build.choose_archs(given, facts) == expected


@pytest.mark.parametrize(
    ('given', 'offered', 'words'),
    [
        ('7.0;9.0', ('7.5', '9.0'), ['TORCH_CUDA_ARCH_LIST names 7.0.', 'nvcc 13.0 compiles for 7.5;9.0']),
        ('native', ('9.0',), ['names native.', '"9.0+PTX"']),
        ('9', ('9.0',), ['names 9.']),
        ('', ('10.0',), ['no default architecture', '7.5;8.0;8.6;9.0', 'set TORCH_CUDA_ARCH_LIST']),
    ],
)
def test_architectures_that_nvcc_cannot_compile_are_refused(given, offered, words):
    with pytest.raises(SystemExit) as error:
        build.choose_archs(given, build.Facts(nvcc='13.0', nvcc_archs=offered))
    for word in words:
        assert word in str(error.value)


def test_facts_of_this_machine(monkeypatch):
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', None)
    facts = build.find_facts({})
    assert facts.torch == torch.__version__ and facts.torch_cuda == (torch.version.cuda or '')
    assert Path(facts.mmcv, 'pytorch_cpp_helper.hpp').is_file()
    assert facts.nvcc == '' and facts.nvcc_archs == ()


def test_facts_without_torch_mmcv_and_compiler(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch', None)
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    facts = build.find_facts({'CXX': str(tmp_path / 'c++')})
    assert 'torch' in facts.torch_error
    assert facts.torch == facts.mmcv == facts.compiler == ''


def test_compiler_may_have_options(tmp_path):
    compiler = tmp_path / 'g++'
    compiler.write_text('')
    compiler.chmod(0o755)
    assert build.find_facts({'CXX': f'{compiler} -m64'}).compiler == str(compiler)


def make_toolkit(folder: Path, top: Path, headers: Path | None) -> None:
    """A folder with an nvcc that answers like 13.1's and says that its toolkit is `top`."""
    nvcc = folder / 'bin' / 'nvcc'
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"""#!/bin/sh
case $1 in
    --version) echo 'Cuda compilation tools, release 13.1, V13.1.88' ;;
    --dryrun) echo '#$ TOP={top}/bin/..' >&2 ;;
    --list-gpu-arch) printf 'compute_75\\ncompute_90\\ncompute_100\\ncompute_100a\\n' ;;
esac
""")
    nvcc.chmod(0o755)
    (top / 'include').mkdir(parents=True, exist_ok=True)
    (top / 'bin').mkdir(exist_ok=True)
    (top / 'include' / 'cuda_runtime.h').write_text('')
    for header in build.CUDA_HEADERS if headers else ():
        headers.mkdir(parents=True, exist_ok=True)
        (headers / header).write_text('')


@pytest.fixture
def cuda_torch(monkeypatch, tmp_path):
    """This torch, as a build with CUDA that looks for its toolkit in tmp_path/cuda and brings no headers."""
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', str(tmp_path / 'cuda'))
    monkeypatch.setitem(sys.modules, 'nvidia', None)
    return tmp_path / 'cuda'


def test_facts_of_a_toolkit(cuda_torch):
    make_toolkit(cuda_torch, top=cuda_torch, headers=cuda_torch / 'include')
    facts = build.find_facts({})
    assert (facts.cuda_home, facts.nvcc, facts.nvcc_archs) == (str(cuda_torch), '13.1', ('7.5', '9.0', '10.0'))
    assert facts.cuda_includes == facts.cuda_missing == ()


def test_toolkit_behind_a_script_on_path_is_found(cuda_torch, tmp_path):
    make_toolkit(cuda_torch, top=tmp_path / 'real', headers=None)
    assert build.find_facts({}).cuda_home == str(tmp_path / 'real')


def test_mathematics_headers_come_from_cpath_or_pip(cuda_torch, tmp_path, monkeypatch):
    make_toolkit(cuda_torch, top=cuda_torch, headers=tmp_path / 'nvidia' / 'cu13' / 'include')
    assert build.find_facts({}).cuda_missing == build.CUDA_HEADERS
    include = str(tmp_path / 'nvidia' / 'cu13' / 'include')
    from_cpath = build.find_facts({'CPATH': f'{tmp_path}:{include}'})
    assert from_cpath.cuda_includes == from_cpath.cuda_missing == ()  # the compiler reads CPATH itself
    monkeypatch.delitem(sys.modules, 'nvidia')
    (tmp_path / 'nvidia' / '__init__.py').touch()  # as that of CUDA 12, which would come before a folder without one
    monkeypatch.syspath_prepend(str(tmp_path))
    from_pip = build.find_facts({})
    assert from_pip.cuda_includes == (include,) and from_pip.cuda_missing == ()


def test_extension_for_the_cpu():
    extension = build.make_extension(build.Plan(ops=True), build.Facts(mmcv='/mmcv/common'))
    assert extension.name == 's6la_mm._ext'
    assert 's6la_mm/ops/csrc/selective_scan.cpp' in extension.sources
    assert not [source for source in extension.sources if '/cuda/' in source]
    assert {Path(path).suffix for path in extension.depends} <= {'.h', '.hpp', '.cuh'} and extension.depends
    assert '/mmcv/common' in extension.include_dirs and extension.define_macros == []
    assert not [flag for flag in extension.extra_compile_args['cxx'] if 'native' in flag or 'CUDA' in flag]


def test_extension_for_cuda(monkeypatch):
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', '/elsewhere')
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '7.0')
    facts = build.Facts(mmcv='/mmcv/common', cuda_home='/opt/cuda', cuda_includes=('/pip/include',))
    extension = build.make_extension(build.Plan(ops=True, archs='8.0;9.0+PTX'), facts)
    assert [source for source in extension.sources if source.endswith('.cu')]
    assert ('MMCV_WITH_CUDA', None) in extension.define_macros
    assert '-DS6LA_CUDA_ARCHS="8.0;9.0+PTX"' in extension.extra_compile_args['cxx']
    assert '/mmcv/common/cuda' in extension.include_dirs
    # The toolkit's headers go before those of torch's packages, and the found toolkit before torch's guess.
    assert extension.include_dirs.index('/opt/cuda/include') < extension.include_dirs.index('/pip/include')
    assert os.environ['TORCH_CUDA_ARCH_LIST'] == '8.0;9.0+PTX'


def setup(*command: object, **env: str) -> subprocess.CompletedProcess:
    names = ('S6LA_WITH_OPS', 'S6LA_WITH_CUDA', 'FORCE_CUDA')
    clean = {key: value for key, value in os.environ.items() if key not in names}
    command = [sys.executable, 'setup.py', *map(str, command)]
    return subprocess.run(command, cwd=ROOT, env={**clean, **env}, capture_output=True, text=True, check=False)


def test_setup_refuses_in_one_line(tmp_path):
    result = setup('build_ext', '--build-lib', tmp_path, '--build-temp', tmp_path, S6LA_WITH_OPS='maybe')
    assert result.returncode != 0 and not list(tmp_path.iterdir())
    assert result.stderr.strip().splitlines()[-1].startswith('s6la_mm: error: S6LA_WITH_OPS=maybe is neither')
    assert 'Traceback' not in result.stderr


def test_setup_says_that_the_op_is_left_out(tmp_path):
    result = setup('build_ext', '--build-lib', tmp_path, '--build-temp', tmp_path, S6LA_WITH_OPS='0')
    assert result.returncode == 0, result.stderr
    assert 's6la_mm: the op is not compiled (S6LA_WITH_OPS=0)' in result.stdout
    assert not list(tmp_path.iterdir())


def test_metadata_needs_no_build_and_lists_the_sources(tmp_path):
    result = setup('-q', 'egg_info', '--egg-base', tmp_path, S6LA_WITH_OPS='maybe')
    assert result.returncode == 0, result.stderr
    listed = (tmp_path / 's6la_mm.egg-info' / 'SOURCES.txt').read_text().splitlines()
    assert 'build_ops.py' in listed
    sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / build.CSRC).rglob('*.*')]
    assert sources and set(sources) <= set(listed)
    required = (tmp_path / 's6la_mm.egg-info' / 'requires.txt').read_text().split('\n\n')[0].splitlines()
    check_requirements({re.match('[a-z0-9]+', line)[0] for line in required})


def check_requirements(required: set[str]) -> None:
    """What the package imports is required, or said to come with what is."""
    imported = set()
    for path in (ROOT / 's6la_mm').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                imported.update(name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module)
    imported = {name.partition('.')[0] for name in imported} - sys.stdlib_module_names
    by_name_of_distribution = dict(PIL='pillow')
    optional = {'mmseg', 'mmpretrain', 'safetensors', 'timm'}
    several_distributions = {'cv2', 'mmcv', 'mmdet', 'mmengine'}
    assert {by_name_of_distribution.get(name, name) for name in imported} - optional - several_distributions == required
