"""What mmengine leaves out for machines without an accelerator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from s6la_mm.common.errors import UsageError
from s6la_mm.engine import S6LAFSDPStrategy
from s6la_mm.engine.cpu import CPUDistributedDataParallel

LEAVE = """
import atexit
import os
from mmengine.config import Config
from torch import nn
from s6la_mm.engine import cpu

before = set(os.listdir('/proc/self/task'))

def gloo_threads():  # and those of its store; they have no names in torch 2.1
    return len(set(os.listdir('/proc/self/task')) - before)

def work():
    cpu.init_cpu_process_group(Config(dict(launcher='pytorch')))
    model = cpu.CPUDistributedDataParallel(nn.Linear(1, 1))
    model.cycle = [model]
    assert gloo_threads() > 0

atexit.register(lambda: print('left:', gloo_threads()))  # the last one registered runs first
work()
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


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Normed(BaseModel):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), norm)
        self.layers[1].weight.data.uniform_()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.layers(inputs)


@pytest.mark.parametrize('name', ['SyncBN', 'MMSyncBN'])
def test_sync_bn_becomes_bn(name, one_process):
    """torch's and mmcv's layers stop on the CPU; in their place are BN layers with the same parameters."""
    from mmcv.cnn import build_norm_layer

    torch.manual_seed(0)
    images = torch.rand(2, 3, 4, 5)
    module = Normed(build_norm_layer(dict(type=name), 4)[1])
    with pytest.raises((ValueError, RuntimeError, AttributeError, NotImplementedError)):
        module.train()(images)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    model = CPUDistributedDataParallel(module).train()
    assert isinstance(model.module.layers[1], nn.modules.batchnorm._BatchNorm)
    torch.testing.assert_close(model.module.state_dict(), state)
    plain = Normed(nn.BatchNorm2d(4)).train()
    plain.load_state_dict(state)
    torch.testing.assert_close(model(images), plain(images))
    model(images).sum().backward()
    assert model.module.layers[1].weight.grad is not None


def test_other_layers_stay(one_process):
    module = Normed(nn.BatchNorm2d(4))
    assert CPUDistributedDataParallel(module).module is module


def test_fsdp_says_which_torch_it_needs(monkeypatch):
    monkeypatch.setattr('s6la_mm.engine.fsdp.get_device', lambda: 'cpu')
    monkeypatch.setattr('s6la_mm.engine.fsdp.FSDP_RUNS_ON_CPU', False)
    with pytest.raises(UsageError, match=r'needs torch 2\.4 or newer, and here is'):
        S6LAFSDPStrategy()
