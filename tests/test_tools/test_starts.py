"""Every Python tool starts where nothing of ``s6la_mm`` has been imported: what it needs, it imports itself."""

from __future__ import annotations

import pytest
from forked import Forked
from tool_runner import ROOT, TOOLS

SCRIPTS = sorted(
    str(path.relative_to(ROOT)) for folder in (TOOLS, ROOT / '.dev_scripts') for path in folder.rglob('*.py')
)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help(script, tmp_path):
    forked = Forked(script, '--help', log=tmp_path / 'log.txt')
    assert forked.wait() == 0, forked.output
    assert forked.output.startswith(f'usage: {script.rpartition("/")[2]} ')
