"""Class names go where their head goes."""

import numpy as np
import pytest
import torch
from tool_runner import call, check

from s6la_mm.checkpoint import read_weights
from s6la_mm.common.model_configs import classes_of_heads, input_channels

CONVERT, INSPECT = 'model_converters/convert_checkpoint.py', 'model_converters/inspect_checkpoint.py'
NAMES, COLOURS = ('circle', 'square'), [[0, 0, 255], [9, 9, 9]]
SMALL = dict(depth=18, base_channels=8, stem_channels=8)
HEADS = {
    'detector': ('bbox_head', 'retina_cls.weight'),
    'segmentor': ('decode_head', 'conv_seg.weight'),
    'classifier': ('head', 'fc.weight'),
}


@pytest.fixture
def source(tmp_path):
    """Writes a checkpoint of a model on the plain backbone, and the config of the same with the S6LA one."""
    from mmdet.models import ResNet

    def write(kind, meta, part='state_dict'):
        head, weight = HEADS[kind]
        state = {f'backbone.{key}': tensor for key, tensor in ResNet(**SMALL).state_dict().items()}
        state[f'{head}.{weight}'] = torch.zeros(2, 4)
        torch.save({'meta': meta, part: state}, tmp_path / 'plain.pth')
        backbone = dict(SMALL, type='S6LAResNet')
        model = {'backbone': backbone, head: dict(num_classes=2), 'rpn_head': dict(num_classes=9)}
        (tmp_path / 'config.py').write_text(f'model = {model!r}')
        return tmp_path / 'plain.pth', tmp_path / 's6la.pth', '--arch', tmp_path / 'config.py'

    return write


@pytest.mark.parametrize('kind', HEADS)
def test_names_travel(source, kind):
    """With their colours, as plain lists and strings; whatever else the file says is too large to keep."""
    meta = dict(dataset_meta=dict(classes=NAMES, palette=np.uint8(COLOURS)), cfg='x' * 20_000)
    args = source(kind, meta)
    output = check(call(CONVERT, *args, '--to', 'classifier' if kind == 'classifier' else 'detector'))
    assert 'plain.pth names 2 classes (circle, square)\n' in output
    content = torch.load(args[1], weights_only=True)
    assert content['meta']['dataset_meta'] == dict(classes=NAMES, palette=COLOURS)
    assert '.'.join(HEADS[kind]) in content['state_dict']
    if kind == 'detector':
        assert 'classes: 2: circle, square\n' in check(call(INSPECT, args[1]))


def test_moving_average(source):
    args = source('detector', dict(dataset_meta=dict(classes=NAMES)), part='state_dict_ema')
    check(call(CONVERT, *args, '--to', 'detector', '--ema'))
    assert read_weights(args[1]).dataset_meta == dict(classes=NAMES)


def test_names_of_earlier_versions(source):
    args = source('detector', dict(CLASSES=NAMES, PALETTE=COLOURS))
    check(call(CONVERT, *args, '--to', 'detector'))
    assert read_weights(args[1]).dataset_meta == dict(classes=NAMES, palette=COLOURS)


@pytest.mark.parametrize(
    ('meta', 'said'),
    [
        (dict(dataset_meta=dict(classes=('circle',))), 'names 1 class (circle), but the heads of the model have 2'),
        (dict(CLASSES='circle'), 'names 1 class (circle), but the heads of the model have 2'),
        ({}, 'names no classes'),
        (None, 'names no classes'),
    ],
)
def test_missing_names(source, meta, said):
    """The file is written, and it is said."""
    args = source('detector', meta)
    assert f'plain.pth {said}\n' in check(call(CONVERT, *args, '--to', 'detector'))
    assert read_weights(args[1]).dataset_meta.get('classes', ()) == (('circle',) if meta else ())


def test_backbone_alone(source):
    """No head, no word about its classes."""
    assert 'names' not in check(call(CONVERT, *source('detector', {})))


def test_what_configs_say():
    """Heads in lists and panoptic ones; branches with other classes do not count."""
    assert classes_of_heads(dict(panoptic_head=dict(num_things_classes=8, num_stuff_classes=3))) == 11
    assert (
        classes_of_heads(dict(roi_head=dict(bbox_head=[dict(num_classes=7)], semantic_head=dict(num_classes=99)))) == 7
    )
    assert input_channels(dict(type='DetTTAModel', module=dict(backbone=dict(in_channels=1)))) == 1
    assert input_channels(dict(backbone=dict(depth=18))) == input_channels({}) == 3
