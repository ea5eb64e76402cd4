"""Every Python tool starts where nothing of ``s6la_mm`` has been imported: what it needs, it imports itself."""

from __future__ import annotations

import pytest
from forked import Forked
from tool_runner import ROOT, TOOLS

FILES = [path for folder in (TOOLS, ROOT / '.dev_scripts') for path in sorted(folder.rglob('*.py'))]
# The others are no scripts: griffe_docstrings.py is a part of the documentation's build, which brings griffe.
SCRIPTS = [
    str(path.relative_to(ROOT)) for path in FILES if "__name__ == '__main__'" in path.read_text(encoding='utf-8')
]


@pytest.mark.parametrize('script', SCRIPTS)
def test_help(script, tmp_path):
    forked = Forked(script, '--help', log=tmp_path / 'log.txt')
    assert forked.wait() == 0, forked.output
    assert forked.output.startswith(f'usage: {script.rpartition("/")[2]} ')
