"""tools/analysis_tools/compare.py."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from forked import Forked
from mmengine.config import Config
from tiny_training import MODELS, TINY
from tool_runner import ROOT, TOOLS

from s6la_mm.comparison.plan import Run, read_plan

BASE = ROOT / 'configs/quickstart/retinanet_s6la-r18_shapes.py'
PLAN = """
config = 'tiny.py'
metric = 'coco/bbox_mAP'
seeds = [3]
cfg_options = {'train_cfg.val_interval': 4}
runs = [
    dict(name='S6LA'),
    dict(name='later', start='S6LA', cfg_options={'train_cfg.max_iters': 2}),
    dict(name='diverges', cfg_options={
        'optim_wrapper.optimizer.lr': 1e30, 'param_scheduler': None,
        'default_hooks.nonfinite.max_consecutive': 1}),
    dict(name='after', start='diverges'),
]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A plan, its config and data."""
    folder = tmp_path_factory.mktemp('compare')
    (folder / 'tiny.py').write_text(TINY.format(base=str(BASE), model=MODELS['retinanet']))
    (folder / 'plan.py').write_text(PLAN)
    return folder


@pytest.fixture
def compare(monkeypatch):
    """The tool as a module that its own processes can import too."""
    monkeypatch.syspath_prepend(TOOLS / 'analysis_tools')
    return importlib.import_module('compare')


@pytest.fixture
def main(folder, compare, monkeypatch, capsys):
    """Calls the tool in this process: its status or message, and what it printed."""
    monkeypatch.setenv('S6LA_SHAPES_ROOT', str(folder / 'shapes'))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')

    def call(*arguments: object) -> tuple[int | str, str]:
        monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            compare.main()
        return end.value.code, ''.join(capsys.readouterr())

    return call


def send_when(path: Path, text: str, number: signal.Signals) -> None:
    """Sends this process a signal as soon as a file holds a text."""

    def watch() -> None:
        for _ in range(3000):
            if path.exists() and text in path.read_text():
                return os.kill(os.getpid(), number)
            time.sleep(0.1)

    threading.Thread(target=watch, daemon=True).start()


class ForkedTraining:
    """Takes the place of ``subprocess.Popen``; starts in seconds less."""

    def __init__(self, command: list[str], stdout: BinaryIO, **_: object) -> None:
        self.forked = Forked(*command[1:], log=Path(stdout.name))

    def wait(self) -> int:
        return self.forked.wait()

    def terminate(self) -> None:
        self.forked.process.terminate()


def test_stopped_resumed_and_reported(folder, compare, main, monkeypatch):
    """A signal in the first run, then all of them, one after the failure of another; then only the report."""
    command = (folder / 'plan.py', '--out', folder / 'out', '--rounds', '1')
    log = folder / 'out/S6LA/seed_3/output.txt'
    with monkeypatch.context() as patch:
        patch.setattr(compare.subprocess, 'Popen', ForkedTraining)
        send_when(log, 'Iter(train)', signal.SIGTERM)
        status, output = main(*command)
        assert status == 75 and 'not all runs have ended: the same command goes on' in output, output
        assert '- S6LA, seed 3: unfinished at iteration ' in output
        status, output = main(*command)
        assert status == 1, output  # two have failed
    assert log.read_text().count('resumed epoch: 0, iter: ') == 1
    results = json.loads((folder / 'out/report/results.json').read_text())
    by_name = {run['name']: run for run in results['runs']}
    states = {name: run['status'] for name, run in by_name.items()}
    assert states == dict(S6LA='finished', later='finished', diverges='failed', after='failed')
    assert 'finite' in by_name['diverges']['reason'] and 'diverges, from which it starts' in by_name['after']['reason']
    assert 'Load checkpoint from' in (folder / 'out/later/seed_3/output.txt').read_text()

    again = main(*command, '--report-only', '--report', folder / 'again', '--shard', '2/2')
    assert again[0] == 1 and json.loads((folder / 'again/results.json').read_text())['runs'] == results['runs']
    settings = (folder / 'again/README.md').read_text()
    assert f'--report {folder / "again"}`\n' in settings and '1 on CPU, 1 thread, ' not in settings
    assert '- Finished trainings: 2 on CPU, 1 thread, ' in settings

    elsewhere = ('--report-only', '--earlier', folder / 'again/results.json', '--out', folder / 'elsewhere')
    (folder / 'plan.py').write_text(PLAN + "runs = [dict(name='renamed'), dict(name='new', start='renamed')]\n")
    status, output = main(folder / 'plan.py', *elsewhere)
    assert status == 1 and '- new, seed 3: not started' in output
    # The weights from which the new one starts are not in the report.
    assert '- renamed, seed 3: not started' in output
    (folder / 'plan.py').write_text(PLAN + "runs = [dict(name='renamed')]\n")
    status, output = main(folder / 'plan.py', *elsewhere)
    assert status == 0 and '| renamed | 1 of 1 |' in output
    assert '- Finished trainings: 1 on CPU, ' in (folder / 'elsewhere/report/README.md').read_text()

    monkeypatch.setattr(compare, 'run_in_child', lambda *_: 2**20)  # test_costs_of_classifiers measures memory
    for size in (64, 32):  # other images, other costs
        with open(folder / 'plan.py', 'a') as file:
            file.write(f"shape = ({size}, 64)\nruns = [dict(name='renamed'), dict(name='other')]\n")
        output = main(*command, '--report-only')[1]
        assert '| renamed | 0 of 1 | – |' in output and 'GFLOPs' in output
        costs = json.loads((folder / 'out/costs.json').read_text())
        assert costs['plan']['shape'] == [size, 64]
        assert list(costs['models']) == ['renamed', 'other']
        for model in costs['models'].values():
            assert all(model[name] for name in ('parameters', 'flops', 'memory', 'seconds'))

    (folder / 'plan.py').write_text(PLAN.replace("'train_cfg.max_iters': 2", "'train_cfg.max_iters': 3"))
    for options in ((), ('--report-only',)):  # a finished run counts for its own settings alone
        status = main(*command, *options)[0]
        assert 'error: ' in status and 'later/seed_3 has a run of another config' in status
    (folder / 'plan.py').write_text(PLAN)


@pytest.mark.parametrize('shard', ['3/2', '0/2', 'a/b', '1', '1/0'])
def test_shard_that_is_none(main, capsys, shard):
    status, output = main('plan.py', '--shard', shard)
    assert status == 2 and f"argument --shard: '{shard}' must be I/N with I from 1 to N" in output


def test_plan_that_cannot_work_names_it_before_the_first_run(folder, tmp_path, main):
    plan = folder / 'wrong.py'
    plan.write_text(PLAN + "runs = [dict(name='S6LA'), dict(name='x', cfg_options={'model.backbone.state_dim': 0})]\n")
    message = main(plan, '--out', tmp_path / 'out')[0]
    assert message.startswith('error: the model of x cannot be built: ') and 'state_dim=0' in message
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('config', 'metric', 'variable'),
    [
        ('upernet/upernet_s6la-r18_camvid.py', 'mIoU', 'CAMVID_ROOT'),
        ('imagenet/s6la-r50_8xb32_in1k.py', 'accuracy/top5', 'IMAGENET_ROOT'),
    ],
)
def test_missing_data_is_named_before_the_first_run(tmp_path, main, monkeypatch, config, metric, variable):
    (tmp_path / 'plan.py').write_text(
        f'config = {str(ROOT / "configs" / config)!r}\nmetric = {metric!r}\nseeds = [0]\nruns = [dict(name="a")]\n'
    )
    monkeypatch.setenv(variable, str(tmp_path / 'none'))
    message = main(tmp_path / 'plan.py', '--out', tmp_path / 'out')[0]
    assert message.startswith('error: the data of a cannot be read: ')
    assert f'Set the environment variable {variable}' in message and not (tmp_path / 'out').exists()


# Stands for train.py: says what it does, and ends as the plan's option `how` wants.
TRAINING = """
import os, signal, sys, time
config, _, folder, *_ = sys.argv[1:]
print('training', flush=True)
how = next((line.split("'")[1] for line in open(config) if line.startswith('how = ')), 'well')
if how == 'waits':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print('waiting', flush=True)
    time.sleep(60)
elif how == 'out of memory':
    os.kill(os.getpid(), signal.SIGKILL)
elif how == 'stopped':
    os.kill(os.getpid(), signal.SIGTERM)
elif how != 'well':
    sys.exit(how)
open(os.path.join(folder, 'iter_4.pth'), 'w').close()
"""
WITHOUT_MODEL = """
config = 'base.py'
metric = 'mIoU'
seeds = [0, 1]
runs = [dict(name='first', cfg_options=dict(how={how!r})), dict(name='second', start='first'), dict(name='third')]
"""


@pytest.fixture
def train_all(tmp_path, compare, monkeypatch):
    """Calls train_all with trainings of no time; ``how`` the runs of the first variant end: the outcomes by run."""
    (tmp_path / 'train.py').write_text(TRAINING)
    (tmp_path / 'base.py').write_text("val_evaluator = dict(type='IoUMetric')\n")
    monkeypatch.setattr(compare, 'TOOLS', str(tmp_path))
    monkeypatch.setattr(compare, 'find_last_good', lambda folder: f'{folder}/iter_4.pth')

    def call(how: str = 'well', shard: tuple[int, int] = (1, 1), retry: bool = False) -> dict[str, str | None]:
        (tmp_path / 'plan.py').write_text(WITHOUT_MODEL.format(how=how))
        plan = read_plan(str(tmp_path / 'plan.py'))
        names = [(variant, seed) for seed in plan.seeds for variant in plan.variants]
        runs = [Run(variant, seed, str(tmp_path / f'{variant.name}{seed}')) for variant, seed in names]
        compare.train_all(plan, compare.shard_of(runs, *shard), retry)
        return {Path(run.folder).name: (run.outcome() or {}).get('status') for run in runs}

    return call


RUNS = ('first0', 'second0', 'third0', 'first1', 'second1', 'third1')


def test_shards_train_all_runs_once(train_all, tmp_path):
    """Each its own runs, into one folder; a run comes after the one from whose weights it starts."""
    assert train_all(shard=(2, 2)) == {**dict.fromkeys(RUNS), 'third0': 'finished', 'third1': 'finished'}
    assert train_all(shard=(1, 2)) == dict.fromkeys(RUNS, 'finished')
    assert train_all() == dict.fromkeys(RUNS, 'finished')
    for name in RUNS:
        assert (tmp_path / name / 'output.txt').read_text() == 'training\n'
    started = Config.fromfile(tmp_path / 'second1.py')
    assert started.load_from == f'{tmp_path}/first1/iter_4.pth' and started.randomness.seed == 1
    outcome = json.loads((tmp_path / 'second1/outcome.json').read_text())
    assert outcome['trained_on'].startswith('CPU, ') and 'torch ' in outcome['trained_on']


@pytest.mark.parametrize(
    ('how', 'reason'), [('out of memory', 'killed by SIGKILL'), ('error: no data', 'no data'), ('NaN', 'NaN')]
)
def test_a_failure_is_recorded_and_passed_over(train_all, tmp_path, how, reason):
    failed = dict(first0='failed', second0='failed', third0='finished')
    outcomes = train_all(how)
    assert {name: outcomes[name] for name in failed} == failed and outcomes['third1'] == 'finished'
    assert json.loads((tmp_path / 'first0/outcome.json').read_text())['reason'] == reason
    reason = json.loads((tmp_path / 'second0/outcome.json').read_text())['reason']
    assert reason == 'first, from which it starts, has failed'
    assert not (tmp_path / 'second0.py').exists()
    assert train_all()['first0'] == 'failed'  # as it is noted
    assert train_all(retry=True) == dict.fromkeys(RUNS, 'finished')
    assert (tmp_path / 'third0/output.txt').read_text() == 'training\n'  # once


def test_the_reason_is_that_of_the_last_attempt(train_all, tmp_path):
    train_all('error: no data')
    train_all('out of disk', retry=True)
    assert json.loads((tmp_path / 'first0/outcome.json').read_text())['reason'] == 'out of disk'


def test_a_training_that_somebody_else_stops(train_all, tmp_path, capsys):
    """It has not failed; what starts from it waits, the others do not."""
    outcomes = train_all('stopped')
    assert outcomes == dict(zip(RUNS, (None, None, 'finished') * 2))
    assert 'second, seed 0: waits for first, from which it starts\n' in capsys.readouterr().out


def test_an_old_failure_is_not_the_outcome_of_the_next_attempt(train_all):
    train_all('error: no data')
    assert train_all('stopped', retry=True) == dict(zip(RUNS, (None, None, 'finished') * 2))


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_training_and_ends_all(train_all, tmp_path, number):
    before = signal.signal(number, signal.default_int_handler)  # a shell that started the tests may ignore it
    try:
        send_when(tmp_path / 'first0/output.txt', 'waiting', number)
        assert train_all('waits') == dict.fromkeys(RUNS)
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert not (tmp_path / 'third0').exists()
    with open(tmp_path / 'first0/output.txt') as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the training has ended


def test_what_another_process_trains_is_passed_over(train_all, tmp_path, capsys):
    """Also where only its training is left, which has the file from it."""
    (tmp_path / 'first0').mkdir()
    with open(tmp_path / 'first0/output.txt', 'ab') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert train_all() == dict(zip(RUNS, (None, None, *['finished'] * 4)))
    assert 'first, seed 0: passed over, another process trains it\n' in capsys.readouterr().out
    assert train_all() == dict.fromkeys(RUNS, 'finished')


def test_the_plan_of_the_page_works(tmp_path, compare):
    page = (ROOT / 'docs/comparisons.md').read_text()
    text = page.split('```python\n')[1].split('```')[0]
    (tmp_path / 'plan.py').write_text(text.replace("'../", f"'{ROOT}/configs/"))
    plan = read_plan(str(tmp_path / 'plan.py'))
    compare.check_models(plan)
    assert [variant.start for variant in plan.variants] == [None, None, 'plain']


def test_costs_of_classifiers(tmp_path, compare):
    """Parameters, FLOPs and times of a training step, with the labels mixed as DeiT's recipe wants it."""
    (tmp_path / 'plan.py').write_text(
        f'config = {str(ROOT / "configs/imagenet/s6la-deit-tiny_4xb256_in1k.py")!r}\n'
        "metric = 'accuracy/top1'\nseeds = [0]\nshape = (64, 64)\n"
        "cfg_options = {'model.backbone.img_size': 64, 'train_dataloader.batch_size': 2}\n"
        "runs = [dict(name='a')]\n"
    )
    plan = read_plan(str(tmp_path / 'plan.py'))
    compare.check_models(plan)
    costs = compare.measure_costs(plan, 1)['models']['a']
    assert 5e6 < costs['parameters'] < 7e6
    # Nearly every weight works on each of the 17 tokens.
    assert costs['flops'] == pytest.approx(17 * costs['parameters'], rel=0.1)
    assert costs['memory'] > 4 * costs['parameters'] and len(costs['seconds']) == 1


def test_data_set_that_says_in_its_own_way_that_it_is_missing(tmp_path, compare):
    """mmpretrain's CIFAR-10 raises a RuntimeError."""
    (tmp_path / 'plan.py').write_text(PLAN)
    cifar = dict(_delete_=True, type='mmpretrain.CIFAR10', data_root='nowhere', download=False)
    text = TINY.format(base=str(BASE), model=MODELS['retinanet'])
    (tmp_path / 'tiny.py').write_text(f"{text}train_dataloader['dataset'] = {cifar}\n")
    with pytest.raises(compare.UsageError, match=r'data of S6LA cannot be read: .*Cannot find CIFAR10'):
        compare.check_data(read_plan(str(tmp_path / 'plan.py')))
