"""tools/benchmarks/distributed.py: from its command line to what it prints, what the processes do, how a group ends."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import traceback

import pytest
import torch
from mmengine.config import Config
from tool_runner import ROOT, TOOLS, call, check, load
from torch.multiprocessing import ProcessRaisedException, start_processes

from s6la_mm.common.errors import UsageError

pytestmark = pytest.mark.usefixtures('spawned_by_fork')
TOOL = 'benchmarks/distributed.py'
QUICKSTART = ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py'
TINY = '--shape 64 64 --iterations 2 --batch 2 --cores 1 --device cpu --json'.split()

distributed = load(TOOL)
JOB = distributed.Job(config=str(QUICKSTART), cfg_options=None, device='cpu', batch=2, rounds=2, shape=(64, 64))


def test_two_processes_against_one():
    """A row for each count, and what is derived is derived from the same output."""
    output = check(call(TOOL, QUICKSTART, '--processes', 1, 2, *TINY))
    assert [line.split()[1] for line in output.splitlines() if line.startswith('S6LA ')] == ['1', '2']
    assert 'random images of 64 × 64' in output and 'All rows share the 1 cores' in output and 'no_sync()' in output
    result = json.loads(output.splitlines()[-1])
    assert (result['scaling'], result['cores']) == ('weak', 1)
    one, two = result['rows']
    assert [row['processes'] for row in (one, two)] == [1, 2]
    for row in (one, two):
        median, low, high = row['seconds']
        assert 0 < low <= median <= high
        assert row['images_per_second'] == pytest.approx(2 * row['processes'] / median)
        assert row['efficiency'] == pytest.approx(row['images_per_second'] / one['images_per_second'])
        assert row['gradient_bytes'] == one['gradient_bytes'] < row['peak_bytes']
        assert row['data_seconds'] is None and row['ratio_to_plain'] is None
    assert one['communication_share'] is None
    median, low, high = two['communication_share']
    assert low <= median <= high < 1


def test_a_process_that_dies_ends_the_measurement(tmp_path, monkeypatch):
    (tmp_path / 'killer.py').write_text(
        "import os, signal\nif os.environ.get('RANK') == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = {str(QUICKSTART)!r}\ncustom_imports = dict(imports=['s6la_mm', 'killer'])\n")
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{tmp_path}')
    monkeypatch.syspath_prepend(tmp_path)
    result = call(TOOL, config, '--processes', 2, *TINY, '--timeout', 120)
    assert result.returncode == 1 and result.stderr.startswith(
        'error: of 2 processes, process 1 terminated with signal SIGKILL: is there enough memory?'
    )


@pytest.mark.parametrize(
    'args, message',
    [
        ((QUICKSTART, '--processes', 0), '--processes, --batch, .* must be positive'),
        (
            (QUICKSTART, '--device', 'cuda', '--processes', 64),
            '64 processes need as many GPUs, and torch sees .*--device',
        ),
        ((QUICKSTART, '--device', 'cpu', '--strong', '--batch', 4, '--processes', 3), '--batch to a multiple of 3'),
        (('nowhere.py',), r"error: config 'nowhere.py' does not exist"),
    ],
)
def test_wrong_options_are_sentences(args, message):
    assert re.search(message, call(TOOL, *args).stderr)


def test_plain_network_of_a_plain_config(tmp_path):
    config = tmp_path / 'plain.py'
    config.write_text("model = dict(backbone=dict(type='ResNet', depth=50))\ntrain_dataloader = dict(batch_size=1)\n")
    assert "the backbone 'ResNet' is no S6LA backbone" in call(TOOL, config, '--baseline').stderr


@pytest.fixture
def one_process(monkeypatch):
    for variable in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(variable, raising=False)


def test_both_networks_are_timed(one_process, tmp_path, monkeypatch):
    """One process has nothing to synchronise; weights stay what they are, so that all rounds time the same network."""
    built = {}
    build = distributed.build_runner

    def remember(cfg, name):
        runner = built[name] = build(cfg, name)
        runner.before = {key: value.clone() for key, value in runner.model.named_parameters()}
        return runner

    monkeypatch.setattr(distributed, 'build_runner', remember)
    networks = (distributed.S6LA, distributed.PLAIN)
    result = distributed.measure_training(JOB._replace(networks=networks), str(tmp_path))
    assert set(result['times']) == set(networks)
    for name in networks:
        assert list(result['times'][name]) == ['synchronised'] and len(result['times'][name]['synchronised']) == 2
        parameters = dict(built[name].model.named_parameters())
        assert result['gradient_bytes'][name] == sum(4 * p.numel() for p in parameters.values() if p.requires_grad)
        torch.testing.assert_close(parameters, built[name].before, rtol=0, atol=0)
        assert built[name].optim_wrapper.optimizer.state  # which has worked
    added = set(built['S6LA'].before) - set(built['plain'].before)
    assert added and all('read' in key or 'cell' in key or 'initial_state' in key for key in added)
    assert result['data'] == 'random images of 64 × 64' and result['waits'] == dict.fromkeys(networks)


def test_data_of_the_config(one_process, tmp_path, monkeypatch):
    """The wait for data is that of the counted rounds."""
    monkeypatch.setenv('S6LA_SHAPES_ROOT', str(tmp_path / 'shapes'))
    config = tmp_path / 'tiny.py'
    config.write_text(
        f'_base_ = {str(QUICKSTART)!r}\n'
        'generator = dict(num_train=5, num_val=1, image_size=64)\n'
        'train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(generator=generator))\n'
    )
    result = distributed.measure_training(JOB._replace(config=str(config), shape=None), str(tmp_path))
    assert result['data'] == 'ShapesDataset, 0 workers a process'
    assert 0 < result['waits']['S6LA'] < max(result['times']['S6LA']['synchronised'])


def test_data_that_is_not_there():
    """Random images of the usual size stand in for it."""
    cfg = Config.fromfile(ROOT / 'configs/retinanet/retinanet_s6la-r50_fpn_1x_coco.py')
    cfg.train_dataloader.dataset.data_root = 'nowhere/'

    class Model(torch.nn.Module):
        bbox_head = torch.nn.Identity()

    Model.bbox_head.num_classes = 80
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        batches, data = distributed.make_batches(cfg, Model(), JOB._replace(batch=1, shape=None))
    assert data == 'random images of 800 × 1344'
    first, second = next(batches), next(batches)
    assert first['inputs'][0].shape == (3, 800, 1344)
    assert first['data_samples'][0] is not second['data_samples'][0]  # a step may change them


def test_processes_that_take_too_long_are_stopped(monkeypatch):
    """While they still import torch; none of them is left."""
    groups = []

    def remember(*args, **kwargs):
        groups.append(start_processes(*args, **kwargs))
        return groups[-1]

    monkeypatch.setattr(distributed, 'start_processes', remember)
    monkeypatch.setitem(sys.modules, distributed.__name__, distributed)  # from where its functions are pickled
    monkeypatch.syspath_prepend((TOOLS / TOOL).parent)  # and where the processes find them
    begin = time.monotonic()
    with pytest.raises(UsageError, match=r'2 processes were not done after 1 s .* raise --timeout'):
        distributed.run_group(JOB, 2, 1, timeout=1.0)
    (group,) = groups
    assert [process.exitcode for process in group.processes] == [-signal.SIGKILL] * 2
    assert time.monotonic() - begin < 60


def test_what_stops_a_process_is_said_in_a_line(monkeypatch, tmp_path):
    """The process ends with a sentence for users, and its parent finds it at the end of the traceback."""
    monkeypatch.setenv('RANK', '')
    monkeypatch.setenv('LOCAL_RANK', '')
    with pytest.raises(UsageError) as stopped:
        distributed.run_process(1, JOB._replace(config='nowhere.py'), str(tmp_path))
    trace = ''.join(traceback.format_exception(UsageError, stopped.value, stopped.value.__traceback__))

    class Group:
        processes = ()

        def join(self, timeout):
            raise ProcessRaisedException(f'-- Process 1 terminated with the following error:\n{trace}', 1, 0)

    monkeypatch.setattr(distributed, 'start_processes', lambda *args, **kwargs: Group())
    with pytest.raises(UsageError, match=r"^process 1 of 2 stopped: config 'nowhere\.py' does not exist"):
        distributed.run_group(JOB, 2, 1, timeout=1.0)
