"""Runs the command line tools as a user does; the tests of tools share it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'


def environment(**env: str) -> dict[str, str]:
    """This process's environment with this Python first on PATH, one thread and no accelerator; and with ``env``."""
    return {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
        'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]),
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
        **env,
    }


def run(*command: object, **env: str) -> subprocess.CompletedProcess:
    """Run a tool (``tools/`` is put before its name), with this Python first on PATH."""
    tool, *args = (str(part) for part in command)
    start = [sys.executable] if tool.endswith('.py') else ['bash']
    return subprocess.run(
        [*start, str(TOOLS / tool), *args], capture_output=True, text=True, env=environment(**env), timeout=900
    )


def check(result: subprocess.CompletedProcess) -> str:
    """The output of a run that must have succeeded."""
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-3000:]
    return output
