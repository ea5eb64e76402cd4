"""Base checkpoints of the transformers load through ``init_cfg``, those of other sizes and outputs too."""

import pytest
import torch
from backbone_checks import images, is_state_key, randomize
from mmdet.models.backbones import PyramidVisionTransformerV2

from s6la_mm.backbones import S6LAPVTv2
from s6la_mm.checkpoint import load_pretrained

mmpretrain_models = pytest.importorskip('mmpretrain.models')
from s6la_mm.backbones import S6LASwin, S6LAViT  # noqa: E402

VIT = dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=24), img_size=16, patch_size=4)

SWIN = dict(arch=dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2]), img_size=32, window_size=3, pad_small_map=True)
PVT = dict(embed_dims=8, num_layers=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], sr_ratios=[4, 2, 1, 1])


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


def plain_swin(**options):
    plain = randomize(mmpretrain_models.SwinTransformer(**SWIN | dict(out_indices=(1,)) | options))
    plain.eval()
    return plain


def test_swin_classifier_file_in_a_dense_network(saved):
    """It lacks the norms of the outputs that a classifier does not have."""
    plain = plain_swin()
    network = load(S6LASwin(**SWIN, out_indices=(0, 1)), saved(classifier_file(plain)))
    assert network.norm0.weight.eq(1).all()
    assert_same_outputs(network(images(size=(37, 50)))[1:], plain(images(size=(37, 50))))


def test_swin_file_of_an_earlier_version(saved):
    """Versions below 2 said ``norm`` for the last norm, versions below 3 saved the masks."""
    plain = plain_swin()
    state = {
        key.replace('norm1.', 'norm.') if key.startswith('norm1.') else key: t for key, t in plain.state_dict().items()
    }
    state['stages.0.blocks.1.attn.attn_mask'] = torch.zeros(4, 9, 9)
    network = load(S6LASwin(**SWIN, out_indices=(1,)), saved(dict(state_dict=state)))
    assert_same_outputs(network(images(size=(37, 50))), plain(images(size=(37, 50))))


def test_swin_of_another_window(saved):
    """The table of relative positions is interpolated; the table of a plane is that of the same plane."""
    plain = plain_swin()
    tables = [m for m in plain.modules() if hasattr(m, 'relative_position_bias_table')]
    for module in tables:
        axis = torch.linspace(-1, 1, 5)
        module.relative_position_bias_table.data.copy_((axis[:, None] + 3 * axis).reshape(-1, 1))
    network = load(S6LASwin(**SWIN | dict(window_size=5), out_indices=(1,)), saved(plain))
    axis = torch.linspace(-1, 1, 9)
    expected = (axis[:, None] + 3 * axis).flatten()
    for module in network.modules():
        if hasattr(module, 'relative_position_bias_table'):
            table = module.relative_position_bias_table.detach().view(9, 9, -1)[2:-2, 2:-2]  # bicubic at the border
            torch.testing.assert_close(table[..., 0], expected.view(9, 9)[2:-2, 2:-2], rtol=0, atol=1e-5)
    assert network.stages[0].blocks[0].attn.w_msa.relative_position_index.shape == (25, 25)


@pytest.mark.parametrize('img_size', [48, (32, 64)])
def test_swin_of_another_image_size_with_absolute_positions(saved, img_size):
    plain = plain_swin(use_abs_pos_embed=True)
    network = load(S6LASwin(**SWIN | dict(img_size=img_size), out_indices=(1,), use_abs_pos_embed=True), saved(plain))
    x = images(size=(img_size, img_size) if isinstance(img_size, int) else img_size)
    assert_same_outputs(network(x), plain(x))


def test_swin_of_another_depth_is_refused(saved):
    with pytest.raises(ValueError, match=r'stages\.1\.blocks\.2'):
        arch = dict(embed_dims=8, depths=[2, 3], num_heads=[1, 2])
        load(S6LASwin(**SWIN | dict(arch=arch), out_indices=(1,)), saved(plain_swin()))


def plain_pvt():
    return randomize(PyramidVisionTransformerV2(**PVT)).eval()


def authors_names(state):
    """mmdet's names and shapes of PVTv2's parameters, turned into the authors'."""
    renamed = {'head.weight': torch.zeros(3, 32), 'head.bias': torch.zeros(3)}
    for key, tensor in state.items():
        _, stage, kind, *rest = key.split('.')
        stage, rest = int(stage) + 1, '.'.join(rest)
        if kind == '0':
            renamed[f'patch_embed{stage}.{rest.replace("projection", "proj")}'] = tensor
        elif kind == '2':
            renamed[f'norm{stage}.{rest}'] = tensor
        elif 'in_proj_' in rest:
            name = f'block{stage}.{rest.replace("attn.attn.in_proj_", "attn.NAME.")}'
            width = tensor.shape[0] // 3
            renamed[name.replace('NAME', 'q')], renamed[name.replace('NAME', 'kv')] = tensor[:width], tensor[width:]
        else:
            rest = rest.replace('attn.attn.out_proj.', 'attn.proj.').replace('ffn.layers.0.', 'mlp.fc1.')
            rest = rest.replace('ffn.layers.1.', 'mlp.dwconv.dwconv.').replace('ffn.layers.4.', 'mlp.fc2.')
            is_linear = '.fc' in rest and tensor.dim() == 4
            renamed[f'block{stage}.{rest}'] = tensor[:, :, 0, 0] if is_linear else tensor
    return renamed


@pytest.mark.parametrize('source', ['mmdet detector', 'mmdet backbone', 'authors', 'authors, under model'])
@pytest.mark.parametrize('typed', [True, False])
def test_pvt(saved, log, source, typed):
    """mmdet's configs name the authors' file without a type in init_cfg."""
    plain = plain_pvt()
    state = plain.state_dict()
    if source == 'mmdet detector':
        state = dict(state_dict={f'backbone.{key}': tensor for key, tensor in state.items()})
    elif source.startswith('authors'):
        state = authors_names(state)
        state = dict(model=state) if source.endswith('model') else state
    network = S6LAPVTv2(**PVT, init_cfg=dict(checkpoint=saved(state)) | (dict(type='Pretrained') if typed else {}))
    network.init_weights()
    assert_same_outputs(network.eval()(images(size=(37, 50))), plain(images(size=(37, 50))))
    assert f'{len(plain.state_dict())} tensors loaded' in next(line for line in log if 'tensors loaded' in line)
    assert not any('from scratch' in line for line in log)


def test_pvt_of_another_depth_is_refused(saved):
    with pytest.raises(ValueError, match=r'missing from the checkpoint: layers\.0\.1\.1'):
        load(S6LAPVTv2(**PVT | dict(num_layers=[2, 1, 2, 1])), saved(plain_pvt()))


@pytest.mark.parametrize('network_class', [S6LASwin, S6LAPVTv2])
@pytest.mark.parametrize('carry', [True, False])
def test_own_checkpoints(saved, network_class, carry):
    options = SWIN | dict(out_indices=(1,)) if network_class is S6LASwin else PVT
    source = randomize(network_class(**options, carry=carry))
    network = load(network_class(**options, carry=carry), saved(source))
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, source.state_dict()[key], rtol=0, atol=0)
    with pytest.raises(
        ValueError, match='not in the backbone: carries' if carry else 'missing from the checkpoint: carries'
    ):
        load(network_class(**options, carry=not carry), saved(source))
