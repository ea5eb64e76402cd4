"""One way to trained models for every scope."""

from __future__ import annotations

import os
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from tool_runner import ROOT, own_process

from s6la_mm.common.errors import UsageError
from s6la_mm.common.inference import build_visualizer, init_model, loader_of, predictor, read_image

CONFIGS = dict(
    mmdet='quickstart/retinanet_s6la-r18_shapes.py',
    mmseg='upernet/upernet_s6la-r18_camvid.py',
    mmpretrain='imagenet/s6la-r50_8xb32_in1k.py',
)
META = dict(classes=('one', 'two'), palette=[(255, 0, 0), (0, 255, 0)])


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def read_config(scope: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / CONFIGS[scope])
    cfg.model.pop('pretrained', None)
    if scope == 'mmpretrain':
        cfg.model.backbone.depth = 18
        cfg.model.head.update(in_channels=512, num_classes=20)
    return cfg


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Where nothing is: an image needs no data set."""
    for name in ('S6LA_SHAPES_ROOT', 'CAMVID_ROOT', 'IMAGENET_ROOT'):
        monkeypatch.setenv(name, str(tmp_path / 'data'))


@pytest.mark.parametrize('scope', CONFIGS)
def test_prediction_of_an_image(scope, tmp_path, data):
    """Of the weights in the file, on the CPU, in evaluation mode, with the file's classes."""
    with own_process():
        cfg = read_config(scope)
        init_default_scope(scope)
        torch.manual_seed(0)
        weights = MODELS.build(cfg.model).state_dict()
        torch.save(dict(state_dict=weights, meta=dict(dataset_meta=META)), tmp_path / 'weights.pth')
        image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'image.png'), image)
        cfg = read_config(scope)
        model = init_model(cfg, str(tmp_path / 'weights.pth'))
        sample = predictor(cfg, model)(str(tmp_path / 'image.png'))
    assert not model.training and model.dataset_meta['classes'] == META['classes']
    assert next(model.parameters()).device.type == 'cpu'
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    if scope == 'mmdet':
        assert sample.pred_instances.bboxes.shape[1] == 4
    elif scope == 'mmseg':
        assert sample.pred_sem_seg.data.shape == (1, 48, 64)
    else:
        assert sample.pred_score.shape == (20,) and float(sample.pred_score.sum()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize('scope', CONFIGS)
def test_code_in_a_file_is_not_executed(scope, tmp_path, data, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # torch refuses it by itself otherwise
    torch.save(dict(state_dict={}, meta={}, payload=Payload(tmp_path / 'executed')), tmp_path / 'weights.pth')
    with own_process(), pytest.raises(pickle.UnpicklingError):
        init_model(read_config(scope), str(tmp_path / 'weights.pth'))
    assert not (tmp_path / 'executed').exists()


def test_scope_that_is_not_known():
    with pytest.raises(UsageError, match=r"default_scope='mmpose' .* must be one of mmdet, mmseg, mmpretrain"):
        init_model(Config(dict(default_scope='mmpose')), 'weights.pth')


def test_a_visualizer_writes_nothing_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')], save_dir='.')))
    visualizer = build_visualizer(cfg, META)
    visualizer.add_image('name', np.zeros((4, 4, 3), np.uint8))
    assert visualizer.dataset_meta == META and not list(tmp_path.iterdir())
    assert cfg.visualizer.vis_backends  # the config is as it was


def test_fewer_names_than_classes(capfd):
    """Said, and every class gets a name and a colour."""
    cfg = Config(dict(visualizer=dict(type='Visualizer'), model=dict(bbox_head=dict(num_classes=4))))
    meta = build_visualizer(cfg, META).dataset_meta
    assert meta['classes'] == ('one', 'two', 'class 2', 'class 3') and len(meta['palette']) == 4
    said = ''.join(capfd.readouterr())
    assert 'the checkpoint names 2 classes (one, two), but the heads of the model have 4' in said


@TRANSFORMS.register_module()
class LoadArray:
    def __call__(self, results):
        return dict(results, img=np.load(results['img_path']))


def test_files_that_only_the_config_can_load(tmp_path):
    """Five channels of any numbers: three of them are shown."""
    pipeline = [dict(type='LoadArray')]
    load = loader_of(Config(dict(test_dataloader=dict(dataset=dict(type='CocoDataset', pipeline=pipeline)))))
    path = str(tmp_path / 'bands.npy')
    np.save(path, np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5))
    image = read_image(path, load)
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8
    assert image[0, 0].tolist() == [int(2 / 27 * 255), int(1 / 27 * 255), 0]
    with pytest.raises(UsageError, match=r'bands\.npy cannot be read as an image'):
        read_image(path)
    (tmp_path / 'empty.npy').write_bytes(b'')
    with pytest.raises(UsageError, match="nor by the config's loader"):
        read_image(str(tmp_path / 'empty.npy'), load)
