"""The command line tools, run as a user runs them, on a data set of a few small pictures."""

from __future__ import annotations

import json
import pickle
import runpy
import sys

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from tool_runner import ROOT, TOOLS, check, run

from s6la_mm.common.errors import UsageError

TINY = """
_base_ = {base!r}
model = dict(test_cfg=dict(rcnn=dict(score_thr=0.0)))  # a model that knows nothing yet finds something
train_cfg = dict(max_iters=4, val_interval=2)
generator = dict(num_train=8, num_val=3, image_size=64)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(generator=generator))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(generator=generator))
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A detector after 4 iterations: its config file, work dir, and data set."""
    folder = tmp_path_factory.mktemp('trained')
    config = folder / 'tiny.py'
    base = ROOT / 'configs/quickstart/mask-rcnn_s6la-r18_shapes.py'
    config.write_text(TINY.format(base=str(base)))
    data = {'S6LA_SHAPES_ROOT': str(folder / 'shapes')}
    check(run('train.py', config, '--work-dir', folder / 'run', **data))
    return dict(config=config, work_dir=folder / 'run', data=data, images=folder / 'shapes/val')


def test_train_writes_checkpoints(trained):
    names = {path.name for path in trained['work_dir'].iterdir()}
    assert {'iter_2.pth', 'iter_4.pth', 'last_checkpoint', 'tiny.py'} <= names


def test_resume_then_report(trained):
    output = check(
        run(
            *('train.py', trained['config'], '--work-dir', trained['work_dir'], '--resume'),
            *('--cfg-options', 'train_cfg.max_iters=6'),
            **trained['data'],
        )
    )
    assert 'iter_4.pth' in output and 'resumed epoch: 0, iter: 4' in output
    assert 'Iter(train) [5/6]' in output and 'Iter(train) [4/6]' not in output

    output = check(run('analysis_tools/make_report.py', trained['work_dir'], '--num-images', 2, **trained['data']))
    page = trained['work_dir'] / 'report/index.html'
    assert f'Page of pictures: {page}' in output
    text = page.read_text()
    assert 'coco/bbox_mAP' in text and 'coco/segm_mAP' in text and 'iter_6.pth' in text
    assert 'last (iteration 6)' in text
    assert 'http' not in text  # no network
    sources = [part.split('"')[0] for part in text.split('src="')[1:]]
    assert sources == ['loss.png', 'metrics.png', 'images/000.png', 'images/001.png']
    for source in sources:
        assert cv2.imread(str(page.parent / source)) is not None


def test_test_dumps_and_draws(trained, tmp_path):
    out = tmp_path / 'predictions.pkl'
    check(
        run(
            *('test.py', trained['config'], trained['work_dir'] / 'iter_4.pth', '--work-dir', tmp_path),
            *('--out', out, '--show-dir', tmp_path / 'shown'),
            **trained['data'],
        )
    )
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 3
    assert {'bboxes', 'labels', 'masks', 'scores'} <= set(predictions[0]['pred_instances'])
    assert {path.name for path in (tmp_path / 'shown').iterdir()} == {path.name for path in trained['images'].iterdir()}


def test_image_demo_on_folder_and_file(trained, tmp_path):
    other = tmp_path / 'elsewhere'
    other.mkdir()
    picture = sorted(trained['images'].iterdir())[0]
    (other / picture.name).write_bytes(picture.read_bytes())
    check(
        run(
            *('image_demo.py', trained['images'], other / picture.name),
            *(trained['config'], trained['work_dir'] / 'iter_4.pth', '--out-dir', tmp_path / 'out'),
            **trained['data'],
        )
    )
    predictions = [json.loads(path.read_text()) for path in (tmp_path / 'out/preds').glob('*.json')]
    # 3 of the folder, and one of the same name from elsewhere that must not overwrite another.
    assert len(predictions) == len(list((tmp_path / 'out/vis').glob('*.png'))) == 4
    first = predictions[0]
    assert first['bboxes'] and len(first['bboxes']) == len(first['classes']) == len(first['masks'])


def test_missing_image_in_a_worker(trained, tmp_path):
    """The file that a DataLoader worker misses is named, with the config's key."""
    result = run(
        *('test.py', trained['config'], trained['work_dir'] / 'iter_4.pth', '--work-dir', tmp_path, '--cfg-options'),
        *('test_dataloader.dataset.data_prefix.img=nowhere/', 'test_dataloader.num_workers=1'),
        **trained['data'],
    )
    assert result.returncode == 1
    missing = f'{trained["data"]["S6LA_SHAPES_ROOT"]}/nowhere/000000.png'
    message = result.stderr[result.stderr.index('error: ') :]
    assert message.startswith(f'error: {missing} does not exist')
    assert 'test_dataloader.dataset.data_root' in message and 'Traceback' not in message


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        (('train.py', 'nowhere.py'), "config 'nowhere.py' does not exist"),
        (('test.py', '{config}', 'nowhere.pth'), "checkpoint 'nowhere.pth' does not exist"),
        (('image_demo.py', 'nowhere/*.jpg', '{config}', __file__), "no image matches 'nowhere/*.jpg'"),
        (('make_report.py', '{folder}/none'), 'not the work dir of a training'),
        (('make_report.py', '{folder}'), 'no logged loss'),
        (('image_demo.py', __file__, '{config}', __file__, '--cfg-options', 'default_scope=mm'), "'mm'"),
    ],
)
def test_wrong_input(command, message, tmp_path, monkeypatch):
    """One message, no traceback; in this process, which has the packages loaded already."""
    config = tmp_path / 'config.py'
    config.write_text("default_scope = 'mmdet'\n")
    tool, *args = (part.format(config=config, folder=tmp_path) for part in command)
    monkeypatch.setattr(sys, 'argv', [tool, *args])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOLS / tool), run_name='__main__')
    assert str(stop.value).startswith('error: ') and message in str(stop.value)


def test_report_without_scalars_or_checkpoint(tmp_path):
    tool = runpy.run_path(str(TOOLS / 'analysis_tools/make_report.py'))
    with pytest.raises(FileNotFoundError, match='no logged loss'):
        tool['read_scalars'](tmp_path)
    (tmp_path / 'last_checkpoint').write_text('/somewhere/else/iter_4.pth')
    with pytest.raises(FileNotFoundError, match='--checkpoint'):
        tool['find_checkpoint'](tmp_path)
    (tmp_path / 'iter_4.pth').touch()  # the work dir was moved
    assert tool['find_checkpoint'](tmp_path) == str(tmp_path / 'iter_4.pth')


def test_report_joins_a_resumed_run(tmp_path):
    """Entries of the first run after the checkpoint that the second one started from are left out."""
    first = [dict(loss=1.0, step=10), dict(loss=2.0, step=20), {'coco/bbox_mAP': 0.1, 'step': 0}]
    first += [dict(loss=3.0, step=30), {'coco/bbox_mAP': 0.2, 'step': 0}]
    second = [dict(loss=4.0, step=30), {'coco/bbox_mAP': 0.3, 'step': 0}]
    for name, entries in (('20260101_1', first), ('20260101_2', second)):
        path = tmp_path / name / 'vis_data/scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text('\n'.join(json.dumps(entry) for entry in entries))
    train, val = runpy.run_path(str(TOOLS / 'analysis_tools/make_report.py'))['read_scalars'](tmp_path)
    assert [entry['loss'] for entry in train] == [1.0, 2.0, 4.0]
    assert [(entry['step'], entry['coco/bbox_mAP']) for entry in val] == [(20, 0.1), (30, 0.3)]


def test_amp_and_auto_scale_lr_options(monkeypatch):
    tool = runpy.run_path(str(TOOLS / 'train.py'))
    amp = tool['enable_amp']

    def config(**model: object) -> Config:
        return Config(dict(optim_wrapper=dict(type='OptimWrapper'), model=model))

    monkeypatch.setitem(amp.__globals__, 'get_device', lambda: 'cuda')
    cfg = config(roi_head={})
    amp(cfg)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')

    monkeypatch.setitem(amp.__globals__, 'get_device', lambda: 'cpu')
    cfg = config()
    amp(cfg)
    assert cfg.optim_wrapper.type == 'CPUAmpOptimWrapper'
    with pytest.raises(UsageError, match='RoIAlign'):
        amp(config(roi_head={}))

    with pytest.raises(UsageError, match='base_batch_size'):
        tool['enable_auto_scale_lr'](config())
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16)))
    tool['enable_auto_scale_lr'](cfg)
    assert cfg.auto_scale_lr.enable


def test_resume_without_checkpoint_keeps_load_from(tmp_path):
    set_resume = runpy.run_path(str(TOOLS / 'train.py'))['set_resume']
    cfg = Config(dict(work_dir=str(tmp_path), load_from='pretrained.pth'))
    set_resume(cfg, 'auto')
    assert cfg.load_from == 'pretrained.pth' and not cfg.get('resume')
    with pytest.raises(FileNotFoundError, match='gone'):
        set_resume(cfg, str(tmp_path / 'gone.pth'))


@pytest.mark.parametrize(
    ('scope', 'expected'),
    [
        ('mmdet', dict(draw=True, test_out_dir='/drawn')),
        ('mmseg', dict(draw=True, interval=1)),
        ('mmpretrain', dict(enable=True, interval=1, out_dir='/drawn')),
    ],
)
def test_show_dir_in_each_scope(scope, expected):
    enable = runpy.run_path(str(TOOLS / 'test.py'))['enable_drawing']
    cfg = Config(dict(default_scope=scope, visualizer={}, default_hooks=dict(visualization={})))
    enable(cfg, False, '/drawn', 0)
    assert expected.items() <= cfg.default_hooks.visualization.to_dict().items()
    assert cfg.visualizer.get('save_dir') == ('/drawn' if scope == 'mmseg' else None)
    with pytest.raises(UsageError, match='default_hooks'):
        enable(Config(dict(default_scope=scope)), False, '/drawn', 0)


def test_tta():
    enable = runpy.run_path(str(TOOLS / 'test.py'))['enable_tta']

    def config(scope: str, **more: object) -> Config:
        pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
        loader = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)))
        return Config(dict(default_scope=scope, model=dict(type='M'), test_dataloader=loader, **more))

    cfg = config('mmdet')
    enable(cfg)
    assert cfg.model.type == 'DetTTAModel' and cfg.model.module.type == 'M'
    pipeline = cfg.test_dataloader.dataset.dataset.pipeline
    assert [step.type for step in pipeline] == ['LoadImageFromFile', 'TestTimeAug']
    with pytest.raises(UsageError, match='no tta_pipeline;'):
        enable(config('mmseg', tta_model=dict(type='SegTTAModel')))
    with pytest.raises(UsageError, match='no tta_model and no tta_pipeline'):
        enable(config('mmpretrain'))
    masks = config('mmdet')
    masks.model.roi_head = dict(mask_head=dict(type='FCNMaskHead'))
    with pytest.raises(UsageError, match='mask_head=None'):
        enable(masks)


@pytest.mark.slow
def test_two_processes_train_and_test(trained, tmp_path):
    """On the CPU through gloo; the two see half of the images each."""
    option = ('--cfg-options', 'train_cfg.max_iters=2')
    check(run('dist_train.sh', trained['config'], 2, '--work-dir', tmp_path / 'w d', *option, **trained['data']))
    checkpoint = tmp_path / 'w d/iter_2.pth'
    output = check(
        run(
            *('dist_test.sh', trained['config'], checkpoint, 2, '--work-dir', tmp_path / 't'),
            *('--out', tmp_path / 'out.pkl', '--cfg-options', 'test_dataloader.batch_size=1'),
            **trained['data'],
        )
    )
    assert '[2/2]' in output  # 3 images: 2 for each process
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 3


SEGMENTATION = """
_base_ = ['mmseg::_base_/default_runtime.py']
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
    backbone=dict(type='ResNetV1c', depth=18, norm_cfg=norm_cfg),
    decode_head=dict(type='FCNHead', in_channels=512, in_index=3, channels=8, num_convs=1, num_classes=2,
                     norm_cfg=norm_cfg),
    test_cfg=dict(mode='whole'))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='{data}', img_suffix='.png', pipeline=pipeline,
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0], [255, 0, 0]]))
evaluator = dict(type='IoUMetric')
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
"""
CLASSIFICATION = """
_base_ = ['mmpretrain::_base_/models/resnet18.py', 'mmpretrain::_base_/default_runtime.py']
model = dict(head=dict(num_classes=2, topk=(1,)))
data_preprocessor = dict(num_classes=2)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='{data}', pipeline=pipeline)
evaluator = dict(type='Accuracy', topk=1)
"""
SCHEDULE = """
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = evaluator
test_evaluator = evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
log_processor = dict(by_epoch=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('package', 'config', 'result'), [('mmseg', SEGMENTATION, 'share'), ('mmpretrain', CLASSIFICATION, 'best')]
)
def test_other_scopes(package, config, result, tmp_path):
    """Train in bfloat16, test and predict; the same four folders serve as labels and as classes."""
    pytest.importorskip(package)
    for folder in ('images', 'labels'):
        (tmp_path / 'data' / folder).mkdir(parents=True)
        for index in range(4):
            value = np.full((64, 64, 3), index % 2, np.uint8)
            cv2.imwrite(
                str(tmp_path / 'data' / folder / f'{index}.png'), value if folder == 'images' else value[..., 0]
            )
    path = tmp_path / 'config.py'
    path.write_text(config.format(data=tmp_path / 'data') + SCHEDULE)
    check(run('train.py', path, '--work-dir', tmp_path / 'run', '--amp'))
    assert 'CPUAmpOptimWrapper' in (tmp_path / 'run/config.py').read_text()
    checkpoint = tmp_path / 'run/epoch_1.pth'
    check(
        run(
            *('test.py', path, checkpoint, '--work-dir', tmp_path / 't', '--out', tmp_path / 'out.pkl'),
            *('--show-dir', tmp_path / 'shown'),
        )
    )
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == (4 if package == 'mmseg' else 8)
    assert 'seg_logits' not in predictions[0]
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 4
    check(run('image_demo.py', tmp_path / 'data/images', path, checkpoint, '--out-dir', tmp_path / 'demo'))
    assert result in json.loads((tmp_path / 'demo/preds/0.json').read_text())
    assert len(list((tmp_path / 'demo/vis').iterdir())) == 4
