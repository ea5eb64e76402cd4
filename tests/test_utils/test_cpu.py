"""Several processes without an accelerator, through gloo."""

import os
import subprocess
import sys

import pytest
import torch

LEAVE = """
import os
from mmengine.config import Config
from torch import nn
from s6la_mm.utils import cpu

def gloo_threads():
    names = (open(f'/proc/self/task/{thread}/comm').read() for thread in os.listdir('/proc/self/task'))
    return sum('gloo' in name for name in names)

def work():
    cpu.init_cpu_process_group(Config(dict(launcher='pytorch')))
    model = cpu.CPUDistributedDataParallel(nn.Linear(1, 1))
    model.cycle = [model]
    assert gloo_threads() > 0

work()
cpu._leave_process_group()
print('left:', gloo_threads())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason='gloo is for machines without an accelerator')
@pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='counts threads in /proc')
def test_gloo_threads_end_before_the_interpreter():
    """A thread that outlives the interpreter's start of shutdown aborts the process now and then."""
    store = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', LEAVE], env={**os.environ, **store}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'left: 0' in done.stdout
