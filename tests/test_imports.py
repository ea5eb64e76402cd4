"""Imports run one way, modules stay small, and the package brings nothing that mmdet has not loaded already."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tool_runner import ROOT

# From the ground: a room imports only from rooms on lower floors.
FLOORS = (
    ('compat', 'config_types', 'environment', 'registry', 'version'),
    ('ops',),
    ('layers', 'necks', 'optim'),
    ('checkpoint',),
    ('backbones',),
    ('common',),
    ('conversion', 'analysis', 'engine'),
    ('benchmarks', 'datasets'),
    ('comparison',),
    ('collect_env',),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SCRIPTS = [path for folder in ('tools', '.dev_scripts') for path in sorted((ROOT / folder).rglob('*.py'))]
MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted((ROOT / 's6la_mm').rglob('*.py'))
}
# The op registers its FLOPs there, which a count by the user's own FlopCounterMode would miss otherwise; 2 ms.
FLOP_COUNTER = {'torch.utils.flop_counter', 'torch.utils.module_tracker'}


def imported(path: Path) -> Iterator[str]:
    """All that a file imports, in functions too: names of modules, or of what is taken out of them."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = '.'.join([*above, *filter(None, [node.module])])
            yield from (f'{base}.{alias.name}' for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    names = {name for name in imported(path) if name.partition('.')[0] == 's6la_mm'}
    return {name if name in MODULES else name.rpartition('.')[0] for name in names}


def room_of(module: str) -> str:
    """The part of the package that a module belongs to; empty for the package itself."""
    return module.partition('.')[2].partition('.')[0]


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} - {''} == FLOOR.keys()


@pytest.mark.parametrize('room', FLOOR)
def test_imports_go_down(room):
    for module, path in MODULES.items():
        if room_of(module) != room:
            continue
        for other in map(room_of, own_imports(path)):
            assert other == room or FLOOR.get(other, len(FLOORS)) < FLOOR[room], f'{module} imports {other or "all"}'


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: own_imports(path) for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(' imports '.join(error.args[1]))


def test_scripts_are_imported_by_nobody():
    scripts = {path.stem for path in SCRIPTS}
    assert {'train', 'kill_resume', 'capacity_plan'} <= scripts
    for path in [*SCRIPTS, *MODULES.values()]:
        for name in imported(path):
            assert name.partition('.')[0] not in scripts | {'tools', 'tests'}, f'{path} imports {name}'


def test_files_stay_small_and_folders_have_names():
    suffixes = {'.py', '.cpp', '.cu', '.h', '.cuh', '.sh'}
    folders = [ROOT / name for name in ('s6la_mm', 'tools', 'tests', '.dev_scripts', 'configs')]
    files = [path for folder in folders for path in folder.rglob('*') if path.suffix in suffixes]
    assert len(files) > 150
    lines = {path: len(path.read_text(encoding='utf-8').splitlines()) for path in files}
    assert not {path: number for path, number in lines.items() if number > 400}
    assert not [path for path in files if 'utils' in path.relative_to(ROOT).parts]


def test_import_loads_what_mmdet_loads():
    """Importing s6la_mm costs little more than ``mmdet.models``: all else is loaded when it is used."""
    code = (
        'import json, sys, mmdet.models\n'
        'before = set(sys.modules)\n'
        'import s6la_mm\n'
        'print("added:", json.dumps(sorted(set(sys.modules) - before)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    added = set(json.loads(done.stdout.rpartition('added:')[2]))
    assert 's6la_mm.backbones.s6la_resnet' in added
    own = {'s6la_mm', *sys.stdlib_module_names}
    assert {name for name in added if name.partition('.')[0] not in own} - FLOP_COUNTER == set()
