"""Processes of seconds less: forked from a server that has imported the packages this one is built on.

For what only a process can show: a script that runs where nothing of ``s6la_mm`` is imported yet, several ranks, and
signals. The server imports and computes nothing, so that it has no threads that a fork would lose.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest import mock

from tool_runner import ROOT, environment, path_of

TESTS = Path(__file__).parent


class Process(ForkServerProcess):
    """One with the environment of the process that starts it, as a spawned one has; without it, the server's."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class Context(ForkServerContext):
    """That of the start method ``'forkserver'``."""

    Process = Process


CONTEXT = Context()


def start_server() -> None:
    """Starts the server, if it does not run yet: ``multiprocessing``'s, for its start method ``'forkserver'``."""
    CONTEXT.set_forkserver_preload(['forked_imports'])
    # As s6la_mm.benchmarks.timing asks of the processes in which it measures memory.
    env = environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(TESTS)]), MALLOC_MMAP_THRESHOLD_='131072')
    with mock.patch.dict(os.environ, env):
        forkserver.ensure_running()


class Forked:
    """A script, or ``'-c'`` and code, in a process and a process group of its own; its output goes to a file."""

    def __init__(self, *command: object, log: Path, **env: str) -> None:
        start_server()
        self.log = log
        script, *args = (str(part) for part in command)
        log.touch()
        self.process = CONTEXT.Process(target=_run, args=(str(path_of(script)), args, str(log)))
        with mock.patch.dict(os.environ, environment(**env)):
            self.process.start()

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, seconds: float = 240) -> None:
        """Until the output has ``text``."""
        self.wait_until(lambda: text in self.output, seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive() and time.monotonic() < end, self.output[-3000:]
            time.sleep(0.05)

    def wait(self, seconds: float = 240) -> int:
        """The exit status; of a process that a signal has killed, minus the signal's number."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f'still running: {self.output[-3000:]}'
        return self.process.exitcode

    def kill(self) -> None:
        """Ends the process and its children at once, and waits for it."""
        if self.process.is_alive():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()
            self.process.join()


def start_ranks(count: int, *command: object, folder: Path, **env: str) -> list[Forked]:
    """The ranks of one machine as torchrun starts them, the output of each in ``folder``/rank<N>.log."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]  # a free one
    env = dict(WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), **env)
    return [
        Forked(*command, log=folder / f'rank{rank}.log', RANK=str(rank), LOCAL_RANK=str(rank), **env)
        for rank in range(count)
    ]


def run_ranks(count: int, *command: object, folder: Path, **env: str) -> str:
    """What the first rank writes; all must succeed."""
    ranks = start_ranks(count, *command, folder=folder, **env)
    try:
        for rank in ranks:
            assert rank.wait() == 0, rank.output[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
    return ranks[0].output


def _run(script: str, args: list[str], log: str) -> None:
    """In the new process."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, 'w', buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, 'w', buffering=1, closefd=False)
    sys.argv = [script, *args]
    try:
        if script == '-c':
            exec(sys.argv.pop(1), {'__name__': '__main__'})
        else:
            runpy.run_path(script, run_name='__main__')
    finally:
        atexit._run_exitfuncs()  # a child of multiprocessing leaves them out
