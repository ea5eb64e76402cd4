"""Runs the command line tools for the tests of tools.

``call`` runs one in this process, which has the packages loaded already: the way for nearly every test. ``run`` starts
one as a user does, for seconds each time: for the shell tools, and once for each Python tool, where it is the start
itself that is tested. ``load`` gives a script's own functions.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import cv2
import numpy as np
import torch
from mmengine.utils import ManagerMixin

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
    """Start a tool in a process of its own."""
    tool, *args = (str(part) for part in command)
    start = [sys.executable] if tool.endswith('.py') else ['bash']
    return subprocess.run(
        [*start, str(path_of(tool)), *args], capture_output=True, text=True, env=environment(**env), timeout=900
    )


def call(*command: object, **env: str) -> subprocess.CompletedProcess:
    """Run a Python tool in this process, and leave nothing of it behind.

    Returns:
        subprocess.CompletedProcess: What ``run`` would: status and output, but not the output of processes that the
        tool has started.

    Raises:
        Exception: What the tool itself does not turn into a message and a status.
    """
    tool, *args = (str(part) for part in command)
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with (
        own_process(),
        mock.patch.dict(os.environ, environment(**env)),
        mock.patch.object(sys, 'argv', [str(path_of(tool)), *args]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            runpy.run_path(str(path_of(tool)), run_name='__main__')
        except SystemExit as end:
            status = end.code or 0
            if not isinstance(status, int):
                print(status, file=sys.stderr)
                status = 1
    return subprocess.CompletedProcess([tool, *args], status, stdout.getvalue(), stderr.getvalue())


def check(result: subprocess.CompletedProcess) -> str:
    """The output of a run that must have succeeded."""
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-3000:]
    return output


def path_of(script: object) -> Path:
    """The file of a script that is named from ``tools/`` or from the root."""
    return next((path for path in (TOOLS / str(script), ROOT / str(script)) if path.is_file()), Path(str(script)))


def load(script: str) -> ModuleType:
    """A Python script as a module of its own, its ``main`` not run."""
    file = path_of(script)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for their module there. No mock.patch.dict: it would forget what the script imports.
    before, sys.modules[file.stem] = sys.modules.get(file.stem), module
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules[file.stem]
        else:
            sys.modules[file.stem] = before
    return module


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Gives the code inside the state of a fresh process without an accelerator, and undoes what it sets."""
    numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads, opencv_threads = torch.get_num_threads(), cv2.getNumThreads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    start_method = multiprocessing.get_start_method(allow_none=True)
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        forget_instances()
        with (
            mock.patch('mmengine.device.utils.DEVICE', 'cpu'),
            mock.patch.object(torch.cuda, 'is_available', lambda: False),
            torch.backends.cudnn.flags(),
        ):
            yield
    finally:
        forget_instances()
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        torch.set_rng_state(numbers[2])
        torch.set_num_threads(threads)
        cv2.setNumThreads(opencv_threads)
        torch.use_deterministic_algorithms(deterministic)
        multiprocessing.set_start_method(start_method, force=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.collect()  # a runner is full of cycles


def forget_instances() -> None:
    """Forgets mmengine's loggers, visualizers, message hubs and default scopes; the loggers close their files."""
    for cls in subclasses(ManagerMixin):
        for instance in cls._instance_dict.values():
            for handler in getattr(instance, 'handlers', []):
                handler.close()
        cls._instance_dict.clear()


def subclasses(cls: type) -> Iterator[type]:
    """A class and all that derive from it."""
    yield cls
    for derived in cls.__subclasses__():
        yield from subclasses(derived)
