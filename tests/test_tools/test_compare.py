"""tools/analysis_tools/compare.py and tools/analysis_tools/analyze_state.py as a user calls them."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time

import pytest
from tiny_training import MODELS, TINY
from tool_runner import ROOT, TOOLS, environment, load, run

from s6la_mm.common.errors import UsageError
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
        'custom_hooks': [dict(type='NonFiniteHook', max_consecutive=1)]}),
    dict(name='after', start='diverges'),
]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A plan, its config and data."""
    folder = tmp_path_factory.mktemp('compare')
    config = TINY.format(base=str(BASE), model=MODELS['retinanet'])
    (folder / 'tiny.py').write_text(config)
    (folder / 'plan.py').write_text(PLAN)
    return folder


@pytest.fixture
def report(folder, monkeypatch, capsys):
    """Calls compare.py in this process, for calls that train nothing: its status or message, and what it printed."""
    monkeypatch.setenv('S6LA_SHAPES_ROOT', str(folder / 'shapes'))
    compare = load('analysis_tools/compare.py')

    def call(*arguments) -> tuple[int | str, str]:
        monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            compare.main()
        return end.value.code, capsys.readouterr().out

    return call


@pytest.mark.slow
def test_stopped_resumed_and_reported(folder, report):
    """A signal in the first run, then all of them, one after the failure of another; then only the report."""
    data = dict(S6LA_SHAPES_ROOT=str(folder / 'shapes'))
    command = (folder / 'plan.py', '--out', folder / 'out', '--rounds', '1')
    process = subprocess.Popen(
        [sys.executable, TOOLS / 'analysis_tools/compare.py', *command],
        env=environment(**data),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = folder / 'out/S6LA/seed_3/output.txt'
    for _ in range(1200):
        if (log.exists() and 'Iter(train)' in log.read_text()) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 75 and 'stopped: the same command goes on' in output, output
    assert '- S6LA, seed 3: unfinished at iteration ' in output

    result = run('analysis_tools/compare.py', *command, '--jobs', 2, **data)
    output = result.stdout + result.stderr
    assert result.returncode == 1, output  # two have failed
    assert log.read_text().count('resumed epoch: 0, iter: ') == 1
    results = json.loads((folder / 'out/report/results.json').read_text())
    by_name = {run['name']: run for run in results['runs']}
    states = {name: run['status'] for name, run in by_name.items()}
    assert states == dict(S6LA='finished', later='finished', diverges='failed', after='failed')
    assert 'finite' in by_name['diverges']['reason'] and 'diverges, from which it starts' in by_name['after']['reason']
    assert 'Load checkpoint from' in (folder / 'out/later/seed_3/output.txt').read_text()

    again = report(*command, '--report-only', '--report', folder / 'again')
    assert again[0] == 1 and json.loads((folder / 'again/results.json').read_text())['runs'] == results['runs']

    elsewhere = ('--report-only', '--earlier', folder / 'again/results.json', '--out', folder / 'elsewhere')
    (folder / 'plan.py').write_text(PLAN + "runs = [dict(name='renamed'), dict(name='new', start='renamed')]\n")
    status, output = report(folder / 'plan.py', *elsewhere)
    assert status == 1 and '- new, seed 3: not started' in output
    # The weights from which the new one starts are not in the report.
    assert '- renamed, seed 3: not started' in output
    (folder / 'plan.py').write_text(PLAN + "runs = [dict(name='renamed')]\n")
    status, output = report(folder / 'plan.py', *elsewhere)
    assert status == 0 and '| renamed | 1 of 1 |' in output
    assert '- Finished trainings: 1 on CPU, ' in (folder / 'elsewhere/report/README.md').read_text()

    for size in (64, 32):  # other images, other costs
        with open(folder / 'plan.py', 'a') as file:
            file.write(f"shape = ({size}, 64)\nruns = [dict(name='renamed'), dict(name='other')]\n")
        output = report(*command, '--report-only')[1]
        assert '| renamed | 0 of 1 | – |' in output and 'GFLOPs' in output
        costs = json.loads((folder / 'out/costs.json').read_text())
        assert costs['plan']['shape'] == [size, 64]
        assert list(costs['models']) == ['renamed', 'other']
        for model in costs['models'].values():
            assert all(model[name] for name in ('parameters', 'flops', 'memory', 'seconds'))

    (folder / 'plan.py').write_text(PLAN.replace("'train_cfg.max_iters': 2", "'train_cfg.max_iters': 3"))
    for options in ((), ('--report-only',)):  # a finished run counts for its own settings alone
        status = report(*command, *options)[0]
        assert 'error: ' in status and 'later/seed_3 has a run of another config' in status


def test_plan_that_cannot_work_names_it_before_the_first_run(folder, tmp_path, report):
    plan = folder / 'wrong.py'
    plan.write_text(PLAN + "runs = [dict(name='S6LA'), dict(name='x', cfg_options={'model.backbone.state_dim': 0})]\n")
    message = report(plan, '--out', tmp_path / 'out')[0]
    assert message.startswith('error: the model of x cannot be built: ') and 'state_dim=0' in message
    assert not (tmp_path / 'out').exists()


def test_missing_data_is_named_before_the_first_run(tmp_path, report, monkeypatch):
    (tmp_path / 'plan.py').write_text(
        f'config = {str(ROOT / "configs/upernet/upernet_s6la-r18_camvid.py")!r}\n'
        "metric = 'mIoU'\nseeds = [0]\nruns = [dict(name='a')]\n"
    )
    monkeypatch.setenv('CAMVID_ROOT', str(tmp_path / 'none'))
    message = report(tmp_path / 'plan.py', '--out', tmp_path / 'out')[0]
    assert message.startswith('error: the data of a cannot be read: ')
    assert 'Set the environment variable CAMVID_ROOT' in message and not (tmp_path / 'out').exists()


def test_retry_waits_for_what_a_run_starts_from(folder, tmp_path, monkeypatch):
    """Both failed before; the second must not end with the first one's old failure."""
    compare = load('analysis_tools/compare.py')
    plan = read_plan(str(folder / 'plan.py'))
    runs = [Run(variant, 3, str(tmp_path / variant.name)) for variant in plan.variants[:2]]
    for run_ in runs:
        run_.write_outcome('failed', 'no data')
    assert train(compare, monkeypatch, plan, runs, 'true', tmp_path)
    assert [run_.outcome()['status'] for run_ in runs] == ['finished', 'finished']


def train(compare, monkeypatch, plan, runs, command: str, out) -> bool:
    """train_all with a shell command in place of every training."""
    monkeypatch.setattr(compare, 'prepare', lambda *_: None)
    monkeypatch.setattr(
        compare,
        'launch',
        lambda run, device, *_: compare.Training(subprocess.Popen(command, shell=True), run, device, 0),
    )
    return compare.train_all(plan, runs, argparse.Namespace(retry=True, jobs=2, threads=1, out=out))


@pytest.mark.parametrize(
    'command, status, reason',
    [
        ('kill -9 $$', 'failed', 'killed by SIGKILL'),  # as by the kernel, without memory
        ('kill -15 $$', None, ''),  # by somebody else, before it could save
        ('exit 75', None, ''),  # the same, when it could
    ],
)
def test_a_training_that_somebody_else_ends(folder, tmp_path, monkeypatch, command, status, reason):
    """What starts from it does not wait for ever."""
    compare = load('analysis_tools/compare.py')
    plan = read_plan(str(folder / 'plan.py'))
    runs = [Run(variant, 3, str(tmp_path / variant.name)) for variant in plan.variants[:2]]
    complete = train(compare, monkeypatch, plan, runs, command, tmp_path)
    outcomes = [run_.outcome() for run_ in runs]
    if status is None:
        assert not complete and outcomes == [None, None]
    else:
        assert complete and [outcome['status'] for outcome in outcomes] == [status, status]
        assert outcomes[0]['reason'] == reason and 'from which it starts, has failed' in outcomes[1]['reason']


def test_the_reason_is_that_of_the_last_attempt(folder, tmp_path, monkeypatch):
    compare = load('analysis_tools/compare.py')
    run_ = Run(read_plan(str(folder / 'plan.py')).variants[0], 3, str(tmp_path))
    (tmp_path / 'output.txt').write_text('error: no data\nout of memory\n')
    process = subprocess.Popen(['false'])
    process.wait()
    assert compare.reason_of(compare.Training(process, run_, None, 0)) == 'no data'
    assert compare.reason_of(compare.Training(process, run_, None, len('error: no data\n'))) == 'out of memory'


def test_one_call_at_a_time(tmp_path, monkeypatch):
    """Trainings of a call that was killed hold the folder too."""
    compare = load('analysis_tools/compare.py')
    with compare.lock(tmp_path) as held:
        child = subprocess.Popen(['sleep', '60'], pass_fds=[held])
    try:
        with pytest.raises(UsageError, match=r'trainings run in .* already'), compare.lock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
    with compare.lock(tmp_path):
        pass


@pytest.mark.parametrize(
    'visible, count, names',
    [(None, 2, ['0', '1']), ('2,3', 2, ['2', '3']), ('GPU-8f, MIG-1', 2, ['GPU-8f', 'MIG-1']), ('', 0, [])],
)
def test_names_of_gpus(monkeypatch, visible, count, names):
    compare = load('analysis_tools/compare.py')
    monkeypatch.setattr('torch.cuda.is_available', lambda: count > 0)
    monkeypatch.setattr('torch.cuda.device_count', lambda: count)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert compare.gpus() == names


def test_the_plan_of_the_page_works(tmp_path, monkeypatch):
    compare = load('analysis_tools/compare.py')
    page = (ROOT / 'docs/comparisons.md').read_text()
    text = page.split('```python\n')[1].split('```')[0]
    (tmp_path / 'plan.py').write_text(text.replace("'../", f"'{ROOT}/configs/"))
    plan = read_plan(str(tmp_path / 'plan.py'))
    compare.check_models(plan)
    assert [variant.start for variant in plan.variants] == [None, None, 'plain']
