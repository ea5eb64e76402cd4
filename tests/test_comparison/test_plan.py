"""Comparisons: what a plan may say, how far runs are, and the statistics of the report."""

import json
import statistics

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tool_runner import ROOT, load

from s6la_mm.backbones.architectures import on_meta_device
from s6la_mm.common.errors import UsageError
from s6la_mm.comparison.plan import Run, metrics_of, read_plan, take_earlier
from s6la_mm.comparison.report import paired_difference, write_report

COMPARISONS = ROOT / 'configs/comparisons'
CONFIG = "val_evaluator = dict(type='IoUMetric')\nmodel = dict(backbone=dict(type='ResNet', depth=18))\n"
PLAN = """
config = 'base.py'
metric = 'mIoU'
seeds = [0, 1, 2]
runs = [dict(name='plain'), dict(name='other', cfg_options={'model.backbone.depth': 34})]
"""


@pytest.fixture
def plan_file(tmp_path):
    (tmp_path / 'base.py').write_text(CONFIG)

    def write(text: str = ''):
        path = tmp_path / 'plan.py'
        path.write_text(PLAN + text)
        return str(path)

    return write


def test_options_of_a_run_come_after_those_of_the_plan(plan_file):
    plan = read_plan(plan_file("cfg_options = {'model.backbone.depth': 50, 'work': 1}\n"))
    depths = [variant.build_config().model.backbone.depth for variant in plan.variants]
    assert depths == [50, 34] and plan.variants[1].build_config().work == 1
    assert plan.reference == 'plain' and plan.seeds == (0, 1, 2) and plan.title == 'plan'


@pytest.mark.parametrize(
    'text, message',
    [
        ("config = 'missing.py'", "config of plain: '.*missing.py' does not exist"),
        ("runs = [dict(name='a'), dict(name='a')]", "two runs have the name 'a'"),
        ("metric = 'coco/bbox_mAP'", "does not give 'coco/bbox_mAP', but aAcc, mIoU, mAcc"),
        ("reference = 'b'", "reference='b' is none of the runs plain, other"),
        ("runs = [dict(name='a', start='b')]", "start of a='b' is none of the runs"),
        ("runs = [dict(name='a', start='b'), dict(name='b')]", 'a must come after b'),
        ('seeds = [0, 0]', 'must be different integers'),
        ("seeds = 'abc'", "seeds='abc' must be a list"),
        ("runs = [dict(name='a/b')]", "the name 'a/b' must be one of a folder"),
        ("runs = [dict(name='a', seed=1)]", 'a run has a name and may have'),
        ("runs = [dict(name='a', cfg_options={'val_evaluator.type.x': 1})]", 'cfg_options of a do not fit'),
        ('shape = (0, 5)', 'shape=.* must be two positive integers'),
        ('metrics = 1', 'metrics is no entry of a plan'),
        ('runs = []', 'runs is missing'),
    ],
)
def test_plans_that_cannot_work(plan_file, text, message):
    with pytest.raises((UsageError, FileNotFoundError), match=message):
        read_plan(plan_file(text + '\n'))


@pytest.mark.parametrize('path', sorted(COMPARISONS.glob('*.py')), ids=lambda path: path.stem)
def test_shipped_plans(path):
    """Read, and every model built without memory, by name of its backbone."""
    plan = read_plan(str(path))
    for variant in plan.variants:
        cfg = variant.build_config()
        backbone = cfg.model.backbone
        assert cfg.param_scheduler[1].end == cfg.train_cfg.max_iters
        with on_meta_device(), DefaultScope.overwrite_default_scope(cfg.default_scope):
            assert type(MODELS.build(backbone)).__name__ == backbone.type.rpartition('.')[2]


def test_metrics_of_detection_and_of_what_is_not_known():
    coco = metrics_of(Config(dict(val_evaluator=dict(type='CocoMetric', metric=['bbox', 'segm']))))
    assert {'coco/bbox_mAP', 'coco/segm_mAP_50'} <= set(coco)
    assert metrics_of(Config(dict(val_evaluator=[dict(type='IoUMetric'), dict(type='Mine')]))) is None


def test_metrics_of_classification():
    def given(**evaluator: object) -> list[str] | None:
        return metrics_of(Config(dict(val_evaluator=dict(type='Accuracy', **evaluator))))

    assert given(topk=(1, 5)) == ['accuracy/top1', 'accuracy/top5']
    assert given() == given(topk=1) == ['accuracy/top1']
    assert given(thrs=(0.1, 0.5)) is None  # which add themselves to the names


@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_shards(plan_file, tmp_path, count):
    """Each run is in one of them, with all that starts from it, and none has much more to do than another."""
    text = (
        "runs = [dict(name='a'), dict(name='b', start='a'), dict(name='c', start='b'), dict(name='d')]\nreference='a'\n"
    )
    plan = read_plan(plan_file(text))
    runs = [Run(v, seed, str(tmp_path / v.name / str(seed))) for seed in plan.seeds for v in plan.variants]
    shard_of = load('analysis_tools/compare.py').shard_of
    shards = [shard_of(runs, index, count) for index in range(1, count + 1)]
    assert sorted(run.folder for shard in shards for run in shard) == sorted(run.folder for run in runs)
    for shard in shards:
        keys = [(run.variant.name, run.seed) for run in shard]
        assert keys == [(r.variant.name, r.seed) for r in runs if r in shard]  # a start stays before what needs it
        assert all((run.variant.start, run.seed) in keys for run in shard if run.variant.start)
    chains = [sum(run.variant.start is None for run in shard) for shard in shards]
    assert sum(chains) == 6 and max(chains) - min(chains) <= 1


def test_paired_difference():
    """Against Student's t from its definition: mean ± t(0.975, n − 1) · s / √n, with t from a table."""
    values, base = [41.2, 41.7, 40.8], [39.3, 38.1, 39.9]
    spread = statistics.stdev([1.9, 3.6, 0.9])
    mean, interval = paired_difference(values, base)
    assert mean == pytest.approx(6.4 / 3)
    half = 4.302653 * spread / 3**0.5
    assert interval == pytest.approx((mean - half, mean + half))
    assert paired_difference([2.0], [1.5]) == (0.5, None)
    with pytest.raises(ValueError, match='0 and 0 values are no pairs'):
        paired_difference([], [])


def write_run(run, curve, losses, outcome=None):
    log = run.folder / 'time' / 'vis_data'
    log.mkdir(parents=True)
    (run.folder / 'evaluations.json').write_text(json.dumps({step: {'mIoU': value} for step, value in curve.items()}))
    lines = [json.dumps(dict(step=step, loss=loss)) for step, loss in losses.items()]
    (log / 'scalars.json').write_text('\n'.join([*lines, '{"step": 9, "lo']))  # a kill cut the last one off
    if outcome:
        run.write_outcome(*outcome)


def test_report_of_runs_in_every_state(plan_file, tmp_path):
    """All finished runs are in the means, pairs are the seeds that both have, and nothing is left out."""
    plan = read_plan(plan_file())
    runs = [Run(variant, seed, tmp_path / variant.name / str(seed)) for variant in plan.variants for seed in plan.seeds]
    (a0, a1, a2), (b0, b1, b2) = runs[:3], runs[3:]
    write_run(a0, {2: 30.0, 4: 40.0}, {1: 2.0, 2: 1.5}, ('finished', '', 'an abacus'))
    write_run(a1, {2: 30.0, 4: 42.0}, {1: 2.0, 2: 1.5}, ('finished',))
    write_run(a2, {2: 31.0}, {1: 2.0, 2: 1.5})
    write_run(b0, {4: 41.0}, {1: 2.0, 2: 1.4}, ('finished',))
    write_run(b1, {4: 44.0}, {1: 2.0, 2: 1.3}, ('finished',))
    write_run(b2, {}, {1: 2.0, 3: 9e9}, ('failed', 'loss is NaN'))
    states = [run.progress('mIoU') for run in runs]
    assert [state.status for state in states] == ['finished'] * 2 + ['unfinished'] + ['finished'] * 2 + ['failed']
    assert [state.value for state in states] == [40.0, 42.0, None, 41.0, 44.0, None]
    assert states[5].iteration == 3
    costs = dict(hardware='CPU, 1 thread', models={})
    for name in ('plain', 'other'):
        costs['models'][name] = dict(parameters=10**6, flops=10**9, memory=2**20, seconds=[1.0, 2.0])
    report = tmp_path / 'report'
    costs_plan = read_plan(plan_file('shape = (8, 8)\n'))
    tables = write_report(costs_plan, runs, costs, str(report), 'compare.py plan.py')
    assert '| plain | 2 of 3 | 41.00 ± 1.41 |' in tables
    # Student's t with one degree of freedom: 1.5 ± 12.7062 * 0.7071 / sqrt(2)
    assert '| other | 2 of 3 | 42.50 ± 2.12 | +1.50 [-4.85, +7.85] | 1.00 M | 1.00 |' in tables
    assert '| other | 41.00 | 44.00 | failed |' in tables
    # The loss of the last quarter, of finished runs: -0.15 ± 12.7062 * 0.0707 / sqrt(2)
    assert (
        '| plain | 1.5000 ± 0.0000 |' in tables and '| other | 1.3500 ± 0.0707 | -0.1500 [-0.7853, +0.4853] |' in tables
    )
    text = (report / 'README.md').read_text()
    assert '- plain, seed 2: unfinished at iteration 2\n' in text
    assert '- other, seed 2: failed at iteration 3: loss is NaN' in text
    assert (
        'compare.py plan.py' in text
        and '- Finished trainings: 1 on an abacus; 3 on hardware that was not noted\n' in text
        and '`model.backbone.depth = 34`' in text
        and 'torch ' in text
    )
    assert len(json.loads((report / 'results.json').read_text())['runs']) == 6
    assert (report / 'curves.png').stat().st_size > 5000


def results_of(tmp_path, plan, folder: str, **curves) -> str:
    """The results.json of a report in which the variants that are named have finished with all seeds."""
    runs = [Run(v, seed, tmp_path / folder / v.name / str(seed)) for seed in plan.seeds for v in plan.variants]
    for run in runs:
        if run.variant.name in curves:
            write_run(run, {4: curves[run.variant.name] + run.seed}, {1: 2.0, 4: 1.5}, ('finished', '', 'an abacus'))
    write_report(plan, runs, None, str(tmp_path / folder / 'report'), '')
    return str(tmp_path / folder / 'report/results.json')


def test_runs_of_an_earlier_report(plan_file, tmp_path, monkeypatch):
    """They count by settings and seed, not by name or by where the data lie."""
    base = tmp_path / 'base.py'
    base.write_text(CONFIG + "data_root = '{{$CAMVID_ROOT:data/camvid}}'\n")
    monkeypatch.setenv('CAMVID_ROOT', '/there')
    earlier = results_of(tmp_path, read_plan(plan_file()), 'there', plain=40.0)
    monkeypatch.setenv('CAMVID_ROOT', '/here')
    plan = read_plan(plan_file("seeds = [1, 5]\nruns = [dict(name='renamed'), dict(name='o', cfg_options={'x': 1})]\n"))
    runs = [Run(v, seed, tmp_path / 'here' / v.name / str(seed)) for seed in plan.seeds for v in plan.variants]
    taken = take_earlier(plan, runs, [earlier])
    found = [run.progress('mIoU') for run in taken]
    assert [progress.status for progress in found] == ['finished', *['not started'] * 3]
    assert found[0].value == 41.0 and found[0].losses == {1: 2.0, 4: 1.5} and found[0].trained_on == 'an abacus'
    assert taken[0].outcome() and not taken[1].outcome()
    tables = write_report(plan, taken, None, str(tmp_path / 'report'), '')
    assert '| renamed | 41.00 | not started |' in tables
    base.write_text(base.read_text() + 'setting = 2\n')
    assert take_earlier(read_plan(plan.path), runs, [earlier]) == runs


def test_an_earlier_run_without_weights_is_no_start(plan_file, tmp_path):
    text = (
        "runs = [dict(name='a'), dict(name='b', start='a'), dict(name='c', start='b')]\nreference = 'a'\nseeds = [0]\n"
    )
    plan = read_plan(plan_file(text))
    runs = [Run(v, 0, tmp_path / v.name) for v in plan.variants]
    for given, expected in (('a', ''), ('ab', ''), ('abc', 'abc'), ('c', 'c')):
        earlier = results_of(tmp_path, plan, given, **dict.fromkeys(given, 40.0))
        taken = take_earlier(plan, runs, [earlier])
        assert ''.join(run.variant.name for run in taken if run.outcome()) == expected, given


@pytest.mark.parametrize('text', ['{', '[]', '{"runs": [{"status": "finished", "seed": 0}]}'])
def test_what_is_no_earlier_report(plan_file, tmp_path, text):
    (tmp_path / 'results.json').write_text(text)
    with pytest.raises(UsageError, match=r'results\.json is no results.json of this version'):
        take_earlier(read_plan(plan_file()), [], [str(tmp_path / 'results.json')])
    (tmp_path / 'results.json').write_text('{"metric": "coco/segm_mAP", "runs": []}')
    with pytest.raises(UsageError, match=r'results\.json reports coco/segm_mAP, not mIoU, the metric of '):
        take_earlier(read_plan(plan_file()), [], [str(tmp_path / 'results.json')])
    with pytest.raises(FileNotFoundError, match=r"earlier report '.*none\.json' does not exist"):
        take_earlier(read_plan(plan_file()), [], [str(tmp_path / 'none.json')])


def test_a_run_that_has_not_started(plan_file, tmp_path):
    run = Run(read_plan(plan_file()).variants[0], 0, str(tmp_path / 'none'))
    assert run.progress('mIoU').status == 'not started' and run.outcome() is None


def test_a_finished_run_without_the_metric_has_failed(plan_file, tmp_path):
    run = Run(read_plan(plan_file()).variants[0], 0, tmp_path / 'r')
    write_run(run, {2: 30.0}, {1: 2.0}, ('finished',))
    assert run.progress('mIoU').value == 30.0
    (run.folder / 'evaluations.json').write_text('{"2": {"mIoU": 30.0}, "4": {}}')
    progress = run.progress('mIoU')
    assert progress[:3] == ('failed', 4, None) and progress.curve == {2: 30.0}
    assert progress.reason == 'the last evaluation did not give mIoU'
    (run.folder / 'evaluations.json').unlink()
    assert run.progress('mIoU').status == 'failed'
    for name in ('evaluations.json', 'outcome.json'):  # damaged, they spoil the figures of this run only
        (run.folder / name).write_text('{"2": {"mI')
        progress = run.progress('mIoU')
        assert progress.status == 'failed' and f'{name} is damaged' in progress.reason
        (run.folder / name).unlink()


def test_settings_of_a_run(plan_file, tmp_path):
    """Its config says with which settings its folder was trained."""
    variant = read_plan(plan_file()).variants[0]
    run = Run(variant, 0, str(tmp_path / 'r'))
    run.check_settings('abc')  # nothing was trained
    run.write_config(variant.build_config(), 'abc')
    run.check_settings('abc')
    assert Config.fromfile(run.config_path)._cfg_dict == variant.build_config()._cfg_dict
    with pytest.raises(UsageError, match=r'r has a run of another config: .* delete that folder and .*r\.py'):
        run.check_settings('abd')
