"""s6la_mm/benchmarks/distributed.py: what the processes do, in this one, and how a launch ends."""

from __future__ import annotations

import time

import pytest
import torch
from mmengine.config import Config
from tool_runner import ROOT

from s6la_mm.benchmarks import distributed as distributed_benchmark
from s6la_mm.benchmarks.distributed import Settings
from s6la_mm.common.errors import UsageError

QUICKSTART = ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py'
TINY = Settings(config=str(QUICKSTART), cfg_options=None, device='cpu', batch=2, iterations=2, shape=(64, 64))


@pytest.fixture
def one_process(monkeypatch):
    for variable in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.slow
def test_work_times_both_networks(one_process, tmp_path, monkeypatch):
    """One process has nothing to synchronise; weights stay what they are, so that all rounds time the same network."""
    built = {}
    build = distributed_benchmark._build

    def remember(cfg, name):
        runner = built[name] = build(cfg, name)
        runner.before = {key: value.clone() for key, value in runner.model.named_parameters()}
        return runner

    monkeypatch.setattr(distributed_benchmark, '_build', remember)
    networks = (distributed_benchmark.S6LA, distributed_benchmark.PLAIN)
    result = distributed_benchmark.work(dict(TINY._asdict(), networks=networks, folder=str(tmp_path)))
    assert set(result['times']) == set(networks)
    for name in networks:
        assert list(result['times'][name]) == ['synchronised'] and len(result['times'][name]['synchronised']) == 2
        parameters = dict(built[name].model.named_parameters())
        assert result['gradient_bytes'][name] == sum(4 * p.numel() for p in parameters.values() if p.requires_grad)
        torch.testing.assert_close(parameters, built[name].before, rtol=0, atol=0)
        assert built[name].optim_wrapper.optimizer.state  # which has worked
    added = set(built['S6LA'].before) - set(built['plain'].before)
    assert added and all('read' in key or 'cell' in key or 'initial_state' in key for key in added)
    assert result['about']['backend'] is None and result['waits'] == dict.fromkeys(networks)


@pytest.mark.slow
def test_data_of_the_config(one_process, tmp_path, monkeypatch):
    """The wait for data is that of the counted rounds."""
    monkeypatch.setenv('S6LA_SHAPES_ROOT', str(tmp_path / 'shapes'))
    config = tmp_path / 'tiny.py'
    config.write_text(
        f'_base_ = {str(QUICKSTART)!r}\n'
        'generator = dict(num_train=5, num_val=1, image_size=64)\n'
        'train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(generator=generator))\n'
    )
    job = dict(TINY._asdict(), config=str(config), shape=None, folder=str(tmp_path))
    result = distributed_benchmark.work(job)
    assert result['about']['data'] == 'ShapesDataset, 0 workers per process'
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
        batches, data = distributed_benchmark._batches(cfg, Model(), 1, None)
    assert data == 'random images of 800 × 1344'
    first, second = next(batches), next(batches)
    assert first['inputs'][0].shape == (3, 800, 1344)
    assert first['data_samples'][0] is not second['data_samples'][0]  # a step may change them


def test_batches():
    assert TINY.batch_per_process(4) == 2
    assert TINY._replace(strong=True, batch=8).batch_per_process(4) == 2
    with pytest.raises(UsageError, match=r'a batch of 8 .* 3 do not divide it: set --batch to a multiple of 3'):
        TINY._replace(strong=True, batch=8).batch_per_process(3)


def test_launch_that_takes_too_long_leaves_nothing(tmp_path):
    """Stopped while the processes still import torch."""
    started = []
    start = distributed_benchmark._start_node

    def remember(*args):
        started.append(start(*args))
        return started[-1]

    begin = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed_benchmark, '_start_node', remember)
        with pytest.raises(UsageError, match=r'2 processes were not done after 1 s .* raise --timeout'):
            distributed_benchmark.launch(TINY._asdict(), 2, 1, 1, timeout=1.0)
    assert len(started) == 2 and all(agent.poll() is not None for agent in started)
    assert time.monotonic() - begin < 60


def test_a_process_writes_down_what_stopped_it(tmp_path):
    (tmp_path / 'node-0.log').write_text('Traceback ...\n  exitcode  : 1 (pid: 7)\n')
    (tmp_path / 'error-3.txt').write_text('x.json does not exist.')
    assert distributed_benchmark._what_went_wrong(tmp_path, 4) == 'process 3 of 4 stopped: x.json does not exist.'
    (tmp_path / 'error-3.txt').unlink()
    message = distributed_benchmark._what_went_wrong(tmp_path, 4)
    assert message.startswith('a process of 4 ended with exit code 1; the end of its output:\nTraceback')
