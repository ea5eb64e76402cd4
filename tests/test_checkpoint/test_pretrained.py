"""``init_cfg=dict(type='Pretrained')``: plain files fit key for key, other architectures are refused and name it."""

import copy
import os

import mmengine
import pytest
import torch
import torchvision
from mmdet.models.backbones import ResNet
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope

from s6la_mm.backbones import S6LAResNet
from s6la_mm.checkpoint import load_pretrained

S6LA_KEYS = ('initial_state', 'cells.')


def with_generic_weights(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith('running_var'):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return network


@pytest.fixture(scope='module')
def torchvision_file(tmp_path_factory):
    network = with_generic_weights(torchvision.models.resnet50(weights=None)).eval()
    path = tmp_path_factory.mktemp('torchvision') / 'resnet50-0676ba61.pth'
    torch.save(network.state_dict(), path)
    return network, path


def plain(depth=50, **options):
    return with_generic_weights(ResNet(depth, base_channels=8, **options))


def s6la(depth=50, **options):
    return S6LAResNet(depth, **dict(base_channels=8, state_dim=8) | options)


def pretrained(checkpoint, **options):
    return dict(type='Pretrained', checkpoint=str(checkpoint), **options)


def assert_loaded(network, source, new=None):
    """Every tensor of ``source`` arrived; ``new``, if given, is all that it does not have."""
    state = network.state_dict()
    for key, tensor in source.items():
        torch.testing.assert_close(state[key], tensor, rtol=0, atol=0)
    others = state.keys() - source.keys()
    assert all(k.startswith(S6LA_KEYS) or '.read.' in k for k in others)
    if new is not None:
        assert set(new) == others


def without_head(state_dict):
    return {key: tensor for key, tensor in state_dict.items() if not key.startswith('fc.')}


@pytest.mark.parametrize('by_name', [False, True])
def test_torchvision_resnet50(torchvision_file, log, tmp_path, monkeypatch, by_name):
    reference, path = torchvision_file
    if by_name:  # resolved to the cached download; the network is not asked
        monkeypatch.setenv('TORCH_HOME', str(tmp_path))
        cache = tmp_path / 'hub' / 'checkpoints'
        cache.mkdir(parents=True)
        os.symlink(path, cache / path.name)
        urls = mmengine.load(os.path.join(mmengine.__path__[0], 'hub/torchvision_0.12.json'))
        assert urls['resnet50'].endswith(path.name)
        path = 'torchvision://resnet50'
    network = S6LAResNet(50, init_cfg=pretrained(path), out_indices=(3,))
    network.init_weights()
    weights = without_head(reference.state_dict())
    assert_loaded(network, weights)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(reference.children())[:-2])(x)
        actual = network.eval()(x)[0]
    assert (actual - expected).norm() < 1e-5 * expected.norm()
    # 16 blocks' readers, 4 cells of 6 tensors each, the initial state; and nothing else is new.
    (line,) = [line for line in log if 'tensors loaded' in line]
    assert f'{len(weights)} tensors loaded' in line and '41 new' in line
    assert '2 left out: fc.weight, fc.bias' in line


@pytest.mark.parametrize('prefix', [None, 'backbone.', 'backbone'])
def test_mmdet_detector(saved, prefix):
    """mmengine's own Pretrained takes the prefix with and without the dot."""
    model = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
    model.backbone.update(depth=18, base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    model.bbox_head.update(in_channels=8, feat_channels=8)
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model)
    with_generic_weights(detector)
    path = saved(dict(meta=dict(epoch=12), state_dict=detector.state_dict()))
    options = dict() if prefix is None else dict(prefix=prefix)
    network = s6la(18, init_cfg=pretrained(path, **options))
    network.init_weights()
    assert_loaded(network, detector.backbone.state_dict())


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_mmpretrain_classifier(saved, prefix):
    registry = pytest.importorskip('mmpretrain.registry')
    from mmpretrain.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    config = dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=64),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        classifier = with_generic_weights(registry.MODELS.build(config)).eval()
    network = s6la(18, out_indices=(3,))
    new = load_pretrained(network, saved(dict(state_dict=classifier.state_dict())), prefix)
    assert_loaded(network, classifier.backbone.state_dict(), new)
    x = torch.rand(2, 3, 33, 65)
    torch.testing.assert_close(network.eval()(x), classifier.backbone(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('whole_model', [False, True])
def test_s6la_checkpoint_of_its_own(saved, whole_model):
    source = with_generic_weights(s6la(out_state=True))
    torch.nn.init.normal_(source.layer2[1].read.weight)
    state = source.state_dict()
    if whole_model:
        state = dict(state_dict={f'backbone.{key}': tensor for key, tensor in state.items()})
    network = s6la(out_state=True)
    assert load_pretrained(network, saved(state)) == []
    assert_loaded(network, source.state_dict(), new=[])
    x = torch.rand(2, 3, 33, 65)
    torch.testing.assert_close(network.eval()(x), source.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    'options',
    [
        dict(groups=4, base_width=4),
        dict(plugins=[dict(cfg=dict(type='ECALayer'), position='after_conv3')]),
        dict(plugins=[dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv2')], style='caffe'),
        dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True)),
        dict(norm_cfg=dict(type='SyncBN', requires_grad=True)),
        dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
        dict(stage_with_state=(False, False, True, True)),
    ],
    ids=str,
)
def test_what_a_plain_file_cannot_have_is_new(saved, options):
    """Plugins, the offsets of a DCN and S6LA start fresh; fewer stages leave a stage out."""
    if 'groups' in options:
        from mmdet.models.backbones import ResNeXt

        source = with_generic_weights(ResNeXt(depth=50, base_channels=8, groups=4, base_width=4))
    else:
        source = plain()
    network = s6la(**copy.deepcopy(options))
    new = load_pretrained(network, saved(source))
    state = network.state_dict()
    for key, tensor in source.state_dict().items():
        if key in state:
            torch.testing.assert_close(state[key], tensor, rtol=0, atol=0)
        else:
            assert 'num_stages' in options and key.startswith('layer4.')
    assert set(new) == state.keys() - source.state_dict().keys()
    allowed = (*S6LA_KEYS, 'initial_state')
    kinds = ('.read.', '.eca', '.context_block', '.conv_offset.')
    assert all(key.startswith(allowed) or any(kind in key for kind in kinds) for key in new)


def test_new_parameters_keep_their_initialisation(saved):
    network = s6la(init_cfg=pretrained(saved(plain())))
    network.init_weights()
    assert network.layer1[0].read.weight.eq(0).all()
    torch.testing.assert_close(network.cells['layer1'].A_log.detach(), torch.arange(1.0, 9.0).log())


@pytest.mark.parametrize('wrap', [dict, ConfigDict])
@pytest.mark.parametrize('as_list', [False, True])
def test_forms_of_init_cfg(saved, wrap, as_list):
    source = plain()
    cfg = wrap(pretrained(saved(source)))
    init_cfg = [cfg, dict(type='Constant', val=5, layer='Conv2d')] if as_list else cfg
    network = s6la(init_cfg=init_cfg)
    network.init_weights()  # what is loaded wins over the other initialisers, wherever it stands in the list
    assert_loaded(network, source.state_dict())
    assert network.init_cfg == init_cfg


def test_inside_a_detector(saved):
    """The parent calls init_weights and keeps the record of who initialised what."""
    source = plain(18)
    parent = BaseModule(init_cfg=dict(type='Constant', val=3, layer='Conv2d'))
    parent.backbone = s6la(18, init_cfg=pretrained(saved(source)))
    parent.head = torch.nn.Conv2d(4, 4, 1)
    info = {}
    parent._dump_init_info = lambda: info.update(
        {name: parent._params_init_info[p]['init_info'] for name, p in parent.named_parameters()}
    )
    parent.init_weights()
    assert_loaded(parent.backbone, source.state_dict())
    assert parent.head.weight.eq(3).all() and parent.backbone.layer1[0].read.weight.eq(0).all()
    assert 'checkpoint.pth' in info['backbone.layer1.0.conv1.weight']


def test_init_weights_twice_loads_once(saved, log):
    network = s6la(18, init_cfg=pretrained(saved(plain(18))))
    network.init_weights()
    torch.nn.init.constant_(network.conv1.weight, 3)
    network.init_weights()
    assert network.conv1.weight.eq(3).all()
    assert any('called more than once' in line for line in log)
    assert len([line for line in log if 'tensors loaded' in line]) == 1


def test_what_is_left_out_may_hold_anything(saved):
    source = plain(18)
    state = dict(source.state_dict()) | {'fc.weight': torch.full((3, 3), float('nan')), 'fc.bias': torch.zeros(3)}
    network = s6la(18)
    load_pretrained(network, saved(state))
    assert_loaded(network, source.state_dict())


def test_data_parallel_file(saved):
    """mmengine's Pretrained drops the ``module.`` of a file saved from a wrapped model."""
    source = plain(18)
    network = s6la(18)
    load_pretrained(network, saved({f'module.{key}': tensor for key, tensor in source.state_dict().items()}))
    assert_loaded(network, source.state_dict())


def test_half_precision_file_without_counters(saved):
    source = plain(18)
    state = {k: v.half() for k, v in source.state_dict().items() if not k.endswith('num_batches_tracked')}
    network = s6la(18)
    load_pretrained(network, saved(state))
    for key, tensor in state.items():
        actual = network.state_dict()[key]
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, tensor.float(), rtol=0, atol=0)
