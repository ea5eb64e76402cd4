"""Converted checkpoints in whole models: a classifier of mmpretrain, a detector of mmdet."""

import pytest
import torch
from checkpoint_sources import VIT, make_source
from mmengine.registry import MODELS

from s6la_mm.backbones.architectures import find_architecture
from s6la_mm.conversion.convert import convert_checkpoint


@pytest.mark.parametrize('name', ['torchvision ResNet-18', 'timm ViT'])
def test_classifier(saved, tmp_path, name):
    """Loads strictly into a whole mmpretrain model, and predicts what the source predicts."""
    network, state = make_source(name)
    options = VIT if 'ViT' in name else {}
    arch = 's6la_deit_ti' if 'ViT' in name else 's6la_r18'
    done = convert_checkpoint(saved(state), str(tmp_path / 'out.pth'), arch, to='classifier', options=options)
    size, classes = (32, 5) if 'ViT' in name else (64, 1000)
    head = (
        dict(type='VisionTransformerClsHead', in_channels=16)
        if 'ViT' in name
        else dict(type='LinearClsHead', in_channels=512)
    )
    backbone = dict(type='S6LAViT', **VIT) if 'ViT' in name else dict(type='S6LAResNet', depth=18, out_indices=(3,))
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=backbone,
            neck=None if 'ViT' in name else dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(head, type=f'mmpretrain.{head["type"]}', num_classes=classes),
        )
    )
    model.load_state_dict(torch.load(done.path, weights_only=True)['state_dict'])
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), network(images), rtol=1e-4, atol=1e-4)
    assert {entry.target for entry in done.match.entries if entry.source.startswith(('fc', 'head'))} == {
        key for key in model.state_dict() if key.startswith('head')
    }


def test_classifier_of_mmpretrain(saved, tmp_path):
    """Its head is beside the backbone."""
    plain = find_architecture('r18').plain(18)
    state = {f'backbone.{key}': tensor for key, tensor in plain.state_dict().items()}
    state |= {'head.fc.weight': torch.ones(7, 512), 'head.fc.bias': torch.zeros(7)}
    path = saved(dict(state_dict=state, ema_state_dict=state))
    done = convert_checkpoint(path, str(tmp_path / 'out.pth'), 's6la_r18', to='classifier')
    assert torch.load(done.path)['state_dict']['head.fc.weight'].shape == (7, 512)
    with pytest.raises(ValueError, match='no class head: convert it to a backbone'):
        state.pop('head.fc.weight')
        convert_checkpoint(saved(dict(state_dict=state)), str(tmp_path / 'b.pth'), 's6la_r18', to='classifier')


def test_head_of_several_layers(saved, tmp_path):
    _, state = make_source('timm ViT')
    for key in ('weight', 'bias'):
        state[f'head.0.{key}'] = state[f'head.2.{key}'] = state[f'head.{key}']
        del state[f'head.{key}']
    with pytest.raises(ValueError, match='more than one layer'):
        convert_checkpoint(saved(state), str(tmp_path / 'out.pth'), 's6la_deit_ti', to='classifier', options=VIT)


def test_head_beside_an_encoder(saved, tmp_path):
    state = {f'encoder.{k}': v for k, v in make_source('torchvision ResNet-18')[1].items() if not k.startswith('fc')}
    state |= {'fc.weight': torch.ones(7, 512), 'fc.bias': torch.zeros(7)}
    done = convert_checkpoint(saved(state), str(tmp_path / 'out.pth'), 's6la_r18', to='classifier')
    assert torch.load(done.path)['state_dict']['head.fc.weight'].shape == (7, 512)


def test_detector_of_more_outputs(saved, tmp_path):
    """The norms of Swin's lower outputs are trained in a detector: they must not get lost."""
    options = dict(arch=dict(embed_dims=8, depths=[1, 2], num_heads=[1, 2]), img_size=64, window_size=4)
    plain = find_architecture('swin-t').plain(**options, out_indices=(0, 1))
    path = saved({f'backbone.{key}': tensor for key, tensor in plain.state_dict().items()})
    out = str(tmp_path / 'out.pth')
    with pytest.raises(ValueError, match=r'no place for: backbone\.norm0\.weight.*out_indices'):
        convert_checkpoint(path, out, 's6la_swin_t', to='detector', options=dict(options, out_indices=(1,)))
    convert_checkpoint(path, out, 's6la_swin_t', to='detector', options=dict(options, out_indices=(0, 1)))


def detector(backbone):
    return dict(
        type='mmdet.RetinaNet',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor'),
        backbone=backbone,
        neck=dict(type='mmdet.FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5),
        bbox_head=dict(
            type='mmdet.RetinaHead',
            num_classes=3,
            in_channels=16,
            stacked_convs=1,
            feat_channels=16,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='mmdet.L1Loss'),
        ),
        train_cfg=dict(
            assigner=dict(type='mmdet.MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='mmdet.PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
    )


def loss_at_start(model):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 96), batch_input_shape=(64, 96), pad_shape=(64, 96), scale_factor=(1.0, 1.0))
    )
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8.0, 40.0, 50.0]]), labels=torch.tensor([1]))
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    return model.loss(images, [sample])


@pytest.mark.parametrize('to', ['backbone', 'detector'])
def test_detector_starts_with_the_same_loss(resnet18, saved, tmp_path, to):
    """Iteration 0: the plain detector from the plain weights, the S6LA one from the converted ones."""
    source, _ = resnet18
    torch.manual_seed(0)
    plain = MODELS.build(
        detector(dict(type='mmdet.ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint=source)))
    )
    plain.init_weights()
    if to == 'backbone':
        torch.manual_seed(0)
        path = convert_checkpoint(source, str(tmp_path / 'out.pth'), 's6la_r18').path
        model = MODELS.build(
            detector(dict(type='S6LAResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint=path)))
        )
        model.init_weights()
        # The S6LA backbone draws random numbers of its own, so that the heads would differ.
        for name in ('neck', 'bbox_head'):
            getattr(model, name).load_state_dict(getattr(plain, name).state_dict())
    else:
        model = MODELS.build(detector(dict(type='S6LAResNet', depth=18)))
        whole = saved(dict(state_dict=plain.state_dict()), 'whole.pth')
        done = convert_checkpoint(whole, str(tmp_path / 'out.pth'), 's6la_r18', to='detector')
        model.load_state_dict(torch.load(done.path, weights_only=True)['state_dict'])
    expected, actual = (loss_at_start(each.train()) for each in (plain, model))
    assert expected['loss_cls'][0] > 0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
