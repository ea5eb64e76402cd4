"""Every Python tool starts as a user starts it: in a process that has imported nothing yet."""

from __future__ import annotations

import pytest
from tool_runner import TOOLS, check, run

SCRIPTS = sorted(str(path.relative_to(TOOLS)) for path in TOOLS.rglob('*.py'))


@pytest.mark.parametrize('script', SCRIPTS)
def test_help(script):
    """Reading the command line needs nothing of what ``call`` finds imported already."""
    assert check(run(script, '--help')).startswith(f'usage: {script.rpartition("/")[2]} ')
