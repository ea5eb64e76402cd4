"""Base checkpoints of the transformers load through ``init_cfg``, those of other sizes and outputs too."""

import pytest
import torch
from token_backbones import images, is_state_key, randomize

from s6la_mm.checkpoint import load_pretrained

mmpretrain_models = pytest.importorskip('mmpretrain.models')
from s6la_mm.backbones import S6LAViT  # noqa: E402

VIT = dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=24), img_size=16, patch_size=4)


def load(network, path, **options):
    """Through init_cfg, as a config does; returns the network in eval mode."""
    network.init_cfg = dict(type='Pretrained', checkpoint=path, **options)
    network.init_weights()
    return network.eval()


def classifier_file(backbone):
    """What mmpretrain's runner saves."""
    state = {f'backbone.{key}': tensor for key, tensor in backbone.state_dict().items()}
    return dict(meta={}, state_dict=state | {'head.layers.head.weight': torch.zeros(3, 16)})


def assert_same_outputs(actual, expected):
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)


def plain_vit(**options):
    plain = randomize(mmpretrain_models.VisionTransformer(**VIT | options))
    plain.eval()  # returns None in mmpretrain
    return plain


@pytest.mark.parametrize('out_type', ['cls_token', 'featmap', 'avg_featmap'])
def test_vit_classifier_file(saved, log, out_type):
    plain = plain_vit()
    network = load(S6LAViT(**VIT, out_type=out_type), saved(classifier_file(plain)))
    assert f'{len(plain.state_dict())} tensors loaded' in next(line for line in log if 'tensors loaded' in line)
    plain.out_type = out_type
    if out_type == 'avg_featmap':
        plain.ln2 = torch.nn.LayerNorm(16, eps=1e-6)  # new in both
    assert_same_outputs(network(images()), plain(images()))


@pytest.mark.parametrize('img_size', [24, (12, 32)])
@pytest.mark.parametrize('with_cls_token', [True, False])
def test_vit_of_another_image_size(saved, img_size, with_cls_token):
    """The position embedding is resized as in a forward pass at that size, and loses the class token's entry."""
    plain = plain_vit(out_type='featmap')
    options = dict(out_type='featmap', img_size=img_size, with_cls_token=with_cls_token)
    network = load(S6LAViT(**VIT | options), saved(plain))
    expected = plain.resize_pos_embed(plain.pos_embed, (4, 4), network.patch_resolution, 'bicubic', 1)
    torch.testing.assert_close(network.pos_embed, expected[:, 0 if with_cls_token else 1 :])
    if with_cls_token:
        x = images(size=network.img_size)
        assert_same_outputs(network(x), plain(x))


def test_vit_without_class_token_at_the_same_size(saved):
    plain = plain_vit(out_type='featmap')
    network = load(S6LAViT(**VIT, out_type='featmap', with_cls_token=False), saved(plain))
    torch.testing.assert_close(network.pos_embed, plain.pos_embed[:, 1:], rtol=0, atol=0)


def test_vit_of_an_unknown_rectangle(saved):
    path = saved(plain_vit(img_size=(16, 24)))
    with pytest.raises(ValueError, match=r'24 patches.*img_size=\(16, 16\)'):
        load(S6LAViT(**VIT), path)


@pytest.mark.parametrize('source_type', ['cls_token', 'featmap'])
@pytest.mark.parametrize('target_type', ['cls_token', 'featmap'])
def test_s6la_vit_checkpoint_of_its_own(saved, source_type, target_type):
    """Pre-trained with the class token, the last layer has no read; it is new in a dense network."""
    source = randomize(S6LAViT(**VIT, out_type=source_type))
    network = load(S6LAViT(**VIT, out_type=target_type), saved(source))
    source_state, state = source.state_dict(), network.state_dict()
    for key in state.keys() & source_state.keys():
        torch.testing.assert_close(state[key], source_state[key], rtol=0, atol=0)
    last = {'layers.2.read.weight'}
    assert state.keys() - source_state.keys() == (last if source_type != target_type == 'featmap' else set())
    if source_type != target_type == 'featmap':
        assert state[last.pop()].eq(0).all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch=VIT['arch'] | dict(num_layers=2)), 'not in the backbone: layers.2'),
        (dict(arch=VIT['arch'] | dict(num_layers=4)), 'missing from the checkpoint: layers.3'),
        (dict(arch=VIT['arch'] | dict(embed_dims=8)), 'other shape'),
        (dict(patch_size=8), 'patch_embed.projection.weight'),
    ],
)
def test_vit_of_another_architecture_is_refused(saved, options, message):
    with pytest.raises(ValueError, match=message):
        load(S6LAViT(**VIT | options), saved(plain_vit()))


def test_returns_the_new_keys(saved):
    network = S6LAViT(**VIT)
    new = load_pretrained(network, saved(plain_vit()))
    assert new and all(is_state_key(key) for key in new)
    assert len(new) == sum(is_state_key(key) for key in network.state_dict())
