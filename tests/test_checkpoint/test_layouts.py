"""Files of all sources load through ``init_cfg``, and the backbone then computes what the source's network computes."""

import json

import pytest
import torch
from checkpoint_sources import SOURCES, VIT, make_source, rla_state
from tool_runner import TOOLS

from s6la_mm.backbones import S6LAResNet, S6LAViT
from s6la_mm.backbones.families import FAMILIES
from s6la_mm.checkpoint import load_pretrained
from s6la_mm.checkpoint.layouts import Layout, read_layout
from s6la_mm.checkpoint.matching import match_backbone
from s6la_mm.checkpoint.reading import Weights


def weights_of(state):
    return Weights(state, {}, '', {})


@pytest.mark.parametrize('name', SOURCES)
@pytest.mark.parametrize('prefix', ['', 'module.', 'module.student.'])
def test_sources(saved, log, name, prefix):
    """Rounding only: the reads start at zero. float32, a few layers: 1e-5 of the largest value."""
    source = SOURCES[name]
    network, state = make_source(name)
    backbone = source.s6la()
    load_pretrained(backbone, saved(dict(state_dict={prefix + key: tensor for key, tensor in state.items()})))
    assert f'(layout {source.layout})' in next(line for line in log if 'tensors loaded' in line)
    images = torch.rand(2, 3, source.size, source.size)
    with torch.no_grad():
        expected, actual = source.features(network, images), backbone.eval()(images)[-1]
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize('name', SOURCES)
def test_every_tensor_is_accounted_for(name):
    """Once in the source, once in the backbone; what is left out is a class head or a computed buffer."""
    _, state = make_source(name)
    backbone = SOURCES[name].s6la()
    match = match_backbone(weights_of(state), backbone)
    sources = [key for entry in match.entries for key in entry.source.split(' + ') if key]
    targets = [entry.target for entry in match.entries if entry.target]
    assert sorted(sources) == sorted(state) and sorted(targets) == sorted(backbone.state_dict())
    assert {entry.note for entry in match.entries if entry.action == 'left out'} <= {
        'class head',
        f'not needed ({match.layout})',
    }
    assert not match.problems and 'class head' in {entry.note for entry in match.entries}


def test_layout_names_are_unique_in_a_family():
    for family in FAMILIES:
        names = [layout.name for layout in family.layouts]
        assert names and len(set(names)) == len(names)
        assert family.networks.keys() <= set(names)


def test_mmseg_vit():
    """mmseg wraps torch's attention, which has one name for all inputs."""
    mmseg_models = pytest.importorskip('mmseg.models.backbones')
    torch.manual_seed(0)  # one random network in many has a difference just above the tolerance
    plain = mmseg_models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dims=16,
        num_layers=3,
        num_heads=2,
        mlp_ratio=2,
        final_norm=True,
        out_indices=-1,
    )
    plain.eval()  # which returns nothing in mmseg
    backbone = S6LAViT(**VIT, out_type='featmap').eval()
    match = match_backbone(weights_of(plain.state_dict()), backbone)
    assert match.layout == 'mmseg' and not match.problems
    backbone.load_state_dict(match.tensors, strict=False)
    images = torch.rand(1, 3, 32, 32)
    # 1e-3: the eps of mmseg's norms is another one.
    torch.testing.assert_close(backbone(images)[0], plain(images)[0], rtol=1e-3, atol=1e-4)


def test_rla():
    """conv([x, h]) = conv1(x) + read(h); what RLA aggregates with is left out."""
    state = rla_state()
    match = match_backbone(weights_of(state), S6LAResNet(18, state_dim=8))
    assert match.layout == 'rla' and not match.problems
    joint = state['stages.1.0.conv1.weight']
    assert match.tensors['layer2.0.conv1.weight'].equal(joint[:, :64])
    assert match.tensors['layer2.0.read.weight'].equal(joint[:, 64:])
    left_out = {entry.source for entry in match.entries if entry.action == 'left out'}
    assert left_out == {key for key in state if key.startswith(('conv_outs', 'recurrent', 'stage_bns', 'bn2', 'fc'))}
    fresh = match_backbone(weights_of(state), S6LAResNet(18, state_dim=8), fresh_reads=True)
    assert not any('read' in key for key in fresh.tensors) and not fresh.problems
    own = match_backbone(weights_of(S6LAResNet(18).state_dict()), S6LAResNet(18), fresh_reads=True)
    assert not own.problems and set(own.new()) == {f'layer{i}.{j}.read.weight' for i in (1, 2, 3, 4) for j in (0, 1)}


@pytest.mark.parametrize('state_dim', [4, 8, 12])
def test_reads_of_another_number_of_channels(state_dim):
    match = match_backbone(weights_of(rla_state()), S6LAResNet(18, state_dim=state_dim))
    read = match.tensors['layer1.1.read.weight']
    assert read.shape[1] == state_dim and read[:, 8:].eq(0).all() and read[:, :8].ne(0).all()


def test_concatenating_resnet():
    """The plain names with the reads in the first convolutions."""
    state = {key.replace('stages.0.', 'layer1.'): tensor for key, tensor in rla_state().items()}
    state = {f'layer{int(k[7]) + 1}{k[8:]}' if k.startswith('stages.') else k: v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.startswith(('conv_outs', 'recurrent', 'stage_bns', 'bn2', 'fc'))}
    match = match_backbone(weights_of(state), S6LAResNet(18, state_dim=8))
    assert match.layout == 'resnet' and not match.problems and 'layer4.1.read.weight' in match.tensors


def test_distilled_deit():
    """Its token has no place: a problem by name, and the position embedding is right nevertheless."""
    _, state = make_source('timm ViT')
    position = state['pos_embed']
    state = dict(state, dist_token=torch.ones(1, 1, 16), pos_embed=torch.cat((position[:, :1], position), dim=1))
    match = match_backbone(weights_of(state), S6LAViT(**VIT))
    assert match.problems == {'not in the backbone': ['dist_token']}
    assert match.tensors['pos_embed'].equal(position)


def test_parts_that_the_backbone_does_not_have():
    """They change what the network computes: LayerScale, norms of queries and keys, names of S6LA's authors."""
    _, state = make_source('timm ViT')
    extra = {
        'blocks.0.ls1.gamma': torch.ones(16),
        'blocks.1.attn.q_norm.weight': torch.ones(8),
        'reg_token': torch.ones(1),
    }
    match = match_backbone(weights_of({**state, **extra, 'fc_norm.weight': torch.ones(16)}), S6LAViT(**VIT))
    assert match.problems == {'not in the backbone': [*extra]}
    _, state = make_source('torchvision ResNet-18')
    match = match_backbone(weights_of({**state, 'ssm.A_log': torch.ones(4)}), S6LAResNet(18))
    assert match.problems == {'not in the backbone': ['ssm.A_log']}


def test_pvt_without_kv():
    _, state = make_source("authors' PVTv2")
    del state['block2.1.attn.kv.weight']
    with pytest.raises(ValueError, match=r'block2\.1\.attn\.q\.weight .*without its counterpart'):
        match_backbone(weights_of(state), SOURCES["authors' PVTv2"].s6la())


def test_two_networks_in_one_file():
    _, state = make_source('timm ViT')
    both = {f'{name}.{key}': tensor for name in ('student', 'teacher') for key, tensor in state.items()}
    with pytest.raises(ValueError, match=r"2 networks.*\['student\.', 'teacher\.'\].*prefix"):
        match_backbone(weights_of(both), S6LAViT(**VIT))
    for prefix in ('teacher', 'module.teacher.'):
        match = match_backbone(weights_of(both), S6LAViT(**VIT), prefix=prefix)
        assert match.prefix == 'teacher.' and not match.problems


def test_layout_by_name():
    _, state = make_source('timm ViT')
    assert match_backbone(weights_of(state), S6LAViT(**VIT), layout='timm').layout == 'timm'
    with pytest.raises(
        ValueError, match="'tim' is no layout of S6LAViT: use auto, timm, torchvision, mmseg, mmpretrain"
    ):
        match_backbone(weights_of(state), S6LAViT(**VIT), layout='tim')
    with pytest.raises(ValueError, match=r'torchvision.*missing from the checkpoint'):
        match_backbone(weights_of(state), S6LAViT(**VIT), layout='torchvision')


def test_layout_of_a_user(tmp_path):
    _, state = make_source('timm ViT')
    state = {key.replace('blocks.', 'body.'): tensor for key, tensor in state.items()}
    with pytest.raises(ValueError, match='no network that S6LAViT can start from'):
        match_backbone(weights_of(state), S6LAViT(**VIT))
    known = next(layout for layout in S6LAViT.family.layouts if layout.name == 'timm')
    content = dict(
        name='mine',
        backbone='S6LAViT',
        markers=['body.0.attn.qkv.weight'],
        rename=[[pattern.replace('blocks', 'body'), name] for pattern, name in known.rename],
    )
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(content))
    match = match_backbone(weights_of(state), S6LAViT(**VIT), layout=read_layout(str(path)))
    assert match.layout == 'mine' and not match.problems
    with pytest.raises(ValueError, match="layout 'mine' is of S6LAViT, and the backbone is a S6LAResNet"):
        match_backbone(weights_of(state), S6LAResNet(18), layout=read_layout(str(path)))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'is no JSON'),
        ('[]', 'must hold an object'),
        ('{"name": "a", "backbone": "S6LAViT"}', "must hold an object with the keys .*'markers'"),
        ('{"name": "a", "backbone": "b", "markers": [], "rules": []}', 'must hold an object'),
        ('{"name": "a", "backbone": "b", "markers": "c"}', 'markers must be a list of strings'),
        ('{"name": "a", "backbone": "b", "markers": ["c"], "rename": ["d"]}', 'rename must be a list of'),
        ('{"name": "a", "backbone": "b", "markers": ["c"], "drop": ["("]}', r"'\(' is no regular expression"),
        ('{"name": "a", "backbone": "b", "markers": []}', 'markers must name a key'),
        ('{"name": "a", "backbone": "b", "markers": ["c"], "rename": [["d", 1]]}', 'rename must be a list of'),
        ('{"name": "a", "backbone": "b", "markers": ["c"], "rename": [["(d)", "\\\\2"]]}', 'invalid group reference'),
    ],
)
def test_wrong_layout_files(tmp_path, content, message):
    path = tmp_path / 'layout.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=f'layout.json.*{message}'):
        read_layout(str(path))


def test_unknown_transform():
    layout = Layout('mine', ('conv1.weight',), transforms=('split_reads', 'fold'), backbone='S6LAResNet')
    with pytest.raises(ValueError, match=r"\['fold'\] are no transforms of S6LAResNet, which has split_reads"):
        match_backbone(weights_of(S6LAResNet(18).state_dict()), S6LAResNet(18), layout=layout)


def test_rules_that_collide(tmp_path):
    _, state = make_source('timm ViT')
    path = tmp_path / 'layout.json'
    rename = [[r'norm\.(weight|bias)', 'ln1.weight']]
    path.write_text(json.dumps(dict(name='a', backbone='S6LAViT', markers=['norm.bias'], rename=rename)))
    with pytest.raises(ValueError, match=r'norm\.bias and norm\.weight both become ln1\.weight'):
        match_backbone(weights_of(state), S6LAViT(**VIT), layout=read_layout(str(path)))


def test_backbone_of_no_family():
    with pytest.raises(ValueError, match='Linear is no S6LA backbone: it has no family'):
        match_backbone(weights_of(dict(weight=torch.ones(1, 1))), torch.nn.Linear(1, 1))


def test_shipped_layout_file():
    layout = read_layout(str(TOOLS / 'model_converters/layouts/s6la_authors.json'))

    assert layout.backbone == 'S6LAResNet'
    plain = S6LAResNet(18).state_dict()
    plain = {
        key: tensor for key, tensor in plain.items() if not key.startswith(('cells', 'initial')) and 'read' not in key
    }
    assert not match_backbone(weights_of(plain), S6LAResNet(18), layout=layout).problems
