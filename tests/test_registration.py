"""``import s6la_mm`` alone registers every class and function that a config, also a dumped one, can name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from s6la_mm.backbones.families import FAMILIES

ROOT = Path(__file__).parents[1]
LIST = """
import s6la_mm
from mmengine import registry
from mmengine.fileio.backends import backends

for name in vars(registry):
    found = getattr(registry, name)
    if isinstance(found, registry.Registry):
        print(name, *found.module_dict)
print('backends', *backends)
"""


def registrations() -> set[tuple[str, str]]:
    """Registry and name of all that is decorated with ``register_...`` in the package."""
    found = set()
    for path in (ROOT / 's6la_mm').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            for call in getattr(node, 'decorator_list', ()):
                text = ast.unparse(call)
                if text.endswith('.register_module()'):
                    found.add((text.partition('.')[0], node.name))
                elif text.startswith('register_backend('):
                    found.add(('backends', ast.literal_eval(call.args[0])))
    return found


@pytest.mark.smoke
def test_import_registers_everything():
    wanted = registrations() | {('MODELS', family.name) for family in FAMILIES}
    assert len(wanted) > 20 and ('OPTIM_WRAPPERS', 'CPUAmpOptimWrapper') in wanted
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', LIST], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    lists = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    missing = sorted((kind, name) for kind, name in wanted if name not in lists.get(kind, ()))
    assert not missing
