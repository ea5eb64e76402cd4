"""Conversion: round trips, surgery of the state, what the file says, and that nothing is half written."""

import json
import os
import re
import resource
from dataclasses import asdict

import pytest
import torch
from backbone_checks import randomize
from checkpoint_sources import CONVNEXT_V2, PVT, SOURCES, SWIN, VIT, make_source, rla_state
from torch import nn

from s6la_mm.backbones import S6LAResNet, S6LASwin, S6LAViT
from s6la_mm.backbones.architectures import find_architecture
from s6la_mm.conversion.convert import build_backbone, convert_checkpoint, save_checkpoint, sha256


def plain_network(package, name):
    """A network of a package with random weights."""
    if package == 'torchvision':
        import torchvision

        return torchvision.models.get_model(name)
    if package == 'timm':
        return pytest.importorskip('timm').create_model(name)
    architecture = find_architecture(name)
    return architecture.plain(**architecture.options)


@pytest.mark.parametrize(
    ('package', 'name', 'arch', 'layout'),
    [
        ('torchvision', 'resnet18', 's6la_r18', 'resnet'),
        ('torchvision', 'resnet50', 's6la_r50', 'resnet'),
        ('timm', 'deit_tiny_patch16_224', 's6la_deit_ti', 'timm'),
        ('timm', 'pvt_v2_b0', 's6la_pvtv2_b0', 'timm'),
        ('timm', 'convnextv2_tiny', 's6la_convnext_v2_tiny', 'timm'),
        ('mmpretrain', 'convnext-tiny', 's6la_convnext_tiny', 'mmpretrain'),
        ('mmpretrain', 'deit-ti', 's6la_deit_ti', 'mmpretrain'),
        ('mmpretrain', 'swin-t', 's6la_swin_t', 'mmpretrain'),
        ('mmdet', 'pvtv2-b0', 's6la_pvtv2_b0', 'mmdet'),
        # The same networks from other packages, whose layouts test_layouts.py reads at small sizes.
        *(
            pytest.param(*source, marks=pytest.mark.nightly)
            for source in (
                ('torchvision', 'resnext50_32x4d', 's6la_x50_32x4d', 'resnet'),
                ('torchvision', 'swin_t', 's6la_swin_t', 'torchvision'),
                ('timm', 'swin_tiny_patch4_window7_224', 's6la_swin_t', 'timm'),
                ('torchvision', 'convnext_tiny', 's6la_convnext_tiny', 'torchvision'),
                ('timm', 'convnext_tiny', 's6la_convnext_tiny', 'timm'),
            )
        ),
    ],
)
def test_round_trips(saved, tmp_path, package, name, arch, layout):
    """The networks of users at their sizes; --verify runs both, below 1e-5."""
    source = saved(randomize(plain_network(package, name)))
    done = convert_checkpoint(source, str(tmp_path / 'out.pth'), arch, verify=True)
    assert done.match.layout == layout and done.difference < 1e-5
    backbone = build_backbone(arch)
    backbone.load_state_dict(torch.load(done.path, weights_only=True)['state_dict'])


@pytest.mark.smoke
def test_file_and_its_use(resnet18, tmp_path, log):
    """What it says about itself, and that init_cfg takes it whole."""
    source, network = resnet18
    before = sha256(source)
    done = convert_checkpoint(source, str(tmp_path / 'new/folder/out.pth'), 's6la_r18', verify=True)
    assert done.difference < 1e-5 and sha256(source) == before
    content = torch.load(done.path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    expected = dict(source='resnet18.pth', source_sha256=before, layout='resnet', arch='s6la_r18', to='backbone')
    assert expected.items() <= content['meta'].items()
    assert content['meta']['s6la_mm_version'] and re.match(r'20\d\d-\d\d-\d\dT', content['meta']['date'])
    backbone = S6LAResNet(18, init_cfg=dict(type='Pretrained', checkpoint=done.path))
    backbone.init_weights()
    assert '0 new: none; 0 left out: none' in next(line for line in log if 'tensors loaded' in line)
    assert backbone.state_dict()['layer4.1.bn2.running_var'].equal(network.layer4[1].bn2.running_var)


def test_same_seed_same_file(resnet18, tmp_path):
    states = [
        torch.load(convert_checkpoint(resnet18[0], str(tmp_path / f'{i}.pth'), 's6la_r18', seed=seed).path)[
            'state_dict'
        ]
        for i, seed in enumerate((0, 0, 1))
    ]
    key = 'cells.layer2.in_proj.weight'
    assert states[0][key].equal(states[1][key]) and not states[0][key].equal(states[2][key])


def own_file(saved, name, **options):
    """An S6LA network whose reads read."""
    backbone = randomize(build_backbone(name, options))
    for key, parameter in backbone.named_parameters():
        if key.endswith('.read.weight'):
            nn.init.normal_(parameter, std=0.05)
    return saved(backbone), backbone.eval()


@pytest.mark.parametrize('arch', ['s6la_r18', 's6la_deit_ti'])
def test_larger_state(saved, tmp_path, arch):
    """Computes the same, and the new channels learn: their reads get gradients."""
    options = VIT if arch == 's6la_deit_ti' else {}
    path, source = own_file(saved, arch, **options)
    old = source.initial_state.shape[0]
    done = convert_checkpoint(
        path, str(tmp_path / 'out.pth'), arch, options=dict(options, state_dim=old + 8), verify=True
    )
    assert done.difference < 1e-3  # the eps of the map cell's norm; see TOLERANCE_LARGER_STATE
    network = build_backbone(arch, dict(options, state_dim=old + 8))
    network.load_state_dict(torch.load(done.path, weights_only=True)['state_dict'])
    network.train()(torch.rand(2, 3, 32, 32))[-1].square().sum().backward()
    key = 'layer2.0.read.weight' if arch == 's6la_r18' else 'layers.1.read.weight'
    grad = network.get_parameter(key).grad
    assert (grad[:, old:] if arch == 's6la_r18' else grad[old:]).abs().max() > 0


def test_smaller_state_keeps_what_is_read_most(saved, tmp_path):
    path, source = own_file(saved, 's6la_r18', state_dim=6)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if name.endswith('.read.weight'):
                parameter[:, [0, 3]] = 0
    torch.save(source.state_dict(), path)
    done = convert_checkpoint(path, str(tmp_path / 'out.pth'), 's6la_r18', options=dict(state_dim=4))
    state = torch.load(done.path, weights_only=True)['state_dict']
    kept = [1, 2, 4, 5]
    assert state['cells.layer3.A_log'].equal(source.cells['layer3'].A_log[kept])
    assert state['cells.layer3.B_proj.weight'].equal(source.cells['layer3'].B_proj.weight[kept][:, kept])
    assert state['layer3.1.read.weight'].equal(source.layer3[1].read.weight[:, kept])
    assert all('state_dim 6 made 4' in e.note for e in done.match.entries if e.action == 'reshaped')
    with pytest.raises(ValueError, match=r'computes something else.*A smaller state_dim does that'):
        convert_checkpoint(path, str(tmp_path / 'b.pth'), 's6la_r18', options=dict(state_dim=4), verify=True)


def test_smaller_state_with_the_reads_in_the_convolutions(saved, tmp_path):
    """As above: what is read most stays, though the reads come out of a split."""
    path, source = own_file(saved, 's6la_r18', state_dim=6)
    state = source.state_dict()
    for name in [name for name in state if name.endswith('.read.weight')]:
        read = state.pop(name)
        read[:, [0, 3]] = 0
        state[name.replace('read', 'conv1')] = torch.cat((state[name.replace('read', 'conv1')], read), dim=1)
    torch.save(state, path)
    done = convert_checkpoint(path, str(tmp_path / 'out.pth'), 's6la_r18', options=dict(state_dim=4))
    state = torch.load(done.path, weights_only=True)['state_dict']
    assert state['layer3.1.read.weight'].equal(source.layer3[1].read.weight[:, [1, 2, 4, 5]])


def test_state_of_another_depth(saved, tmp_path):
    """The other state_dim does not hide the other architecture, which is found."""
    path, _ = own_file(saved, 's6la_r18', state_dim=16)
    with pytest.raises(ValueError, match=r'other shape.*It fits s6la_r18\.'):
        convert_checkpoint(path, str(tmp_path / 'out.pth'), 's6la_r50')


def test_rla(saved, tmp_path):
    path = saved(dict(state_dict=rla_state(), epoch=3))
    done = convert_checkpoint(path, str(tmp_path / 'out.pth'), 's6la_r18', options=dict(state_dim=8), verify=True)
    assert done.match.layout == 'rla' and done.difference < 1e-5
    assert {e.note for e in done.match.entries if e.action == 'left out'} == {'not needed (rla)'}
    with pytest.raises(ValueError, match="no package that has the network of layout 'rla'"):
        convert_checkpoint(path, str(tmp_path / 'b.pth'), 's6la_r18', fresh_reads=True, verify=True)
    assert not (tmp_path / 'b.pth').exists()


def test_other_image_and_window_size(saved, tmp_path):
    _, state = make_source('timm ViT')
    path, out = saved(state), str(tmp_path / 'out.pth')
    done = convert_checkpoint(path, out, 's6la_deit_ti', options=dict(VIT, img_size=48))
    entry = next(e for e in done.match.entries if e.target == 'pos_embed')
    assert entry.action == 'reshaped' and entry.note == 'from (1, 17, 16)' and entry.shape == (1, 37, 16)
    with pytest.raises(ValueError, match='needs the image and window size of the source, and pos_embed was resized'):
        convert_checkpoint(path, out, 's6la_deit_ti', options=dict(VIT, img_size=48), verify=True)
    _, state = make_source('timm Swin')
    options = dict(arch=dict(embed_dims=8, depths=[1, 2], num_heads=[1, 2]), img_size=64, out_indices=(1,))
    done = convert_checkpoint(saved(state), out, 's6la_swin_t', options=dict(options, window_size=2))
    S6LASwin(**options, window_size=2).load_state_dict(torch.load(done.path)['state_dict'])


@pytest.mark.parametrize('dtype', [None, 'float32', 'float16', 'bfloat16'])
def test_storage_types(saved, tmp_path, dtype):
    """A half-precision source stays one unless told otherwise; whole numbers stay."""
    _, state = make_source('torchvision ResNet-18')
    path = saved({key: t.half() if t.is_floating_point() else t for key, t in state.items()})
    done = convert_checkpoint(path, str(tmp_path / 'out.pth'), 's6la_r18', dtype=dtype)
    state = torch.load(done.path, weights_only=True)['state_dict']
    assert state['conv1.weight'].dtype == getattr(torch, dtype or 'float16')
    assert state['bn1.num_batches_tracked'].dtype == torch.int64


def test_overflow_of_a_smaller_type(saved, tmp_path):
    _, state = make_source('torchvision ResNet-18')
    state['bn1.running_var'] = torch.full((64,), 1e6)
    with pytest.raises(ValueError, match=r'cast to float16, has NaN or Inf in 1 tensors: bn1\.running_var'):
        convert_checkpoint(saved(state), str(tmp_path / 'out.pth'), 's6la_r18', dtype='float16')


def test_publish(resnet18, tmp_path):
    done = convert_checkpoint(resnet18[0], str(tmp_path / 'out.pth'), 's6la_r18', publish=True)
    assert os.path.basename(done.path) == f'out-{sha256(done.path)[:8]}.pth'
    assert os.listdir(tmp_path) == [os.path.basename(done.path)]


def test_config_as_architecture(saved, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("model = dict(backbone=dict(type='S6LAResNet', depth=18, state_dim=8, init_cfg=dict(type='X')))")
    done = convert_checkpoint(saved(rla_state()), str(tmp_path / 'out.pth'), str(config))
    assert done.meta['arch'] == 'config.py'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ("model = dict(backbone=dict(type='ResNet', depth=18))", r'backbone of \S+config\.py is a ResNet'),
        ('model = dict()', r'config\.py has no model\.backbone'),
        ("model = dict(backbone=dict(type='S6LAResNett'))", r'cannot be built.*S6LAResNett'),
        ('model = dict(', r'config\.py is no config'),
    ],
)
def test_refused_configs(tmp_path, content, message):
    config = tmp_path / 'config.py'
    config.write_text(content)
    with pytest.raises(ValueError, match=message):
        build_backbone(str(config))


def test_unknown_option():
    with pytest.raises(ValueError, match=r"s6la_r18 with \{'depht': 3\} cannot be built.*depht"):
        build_backbone('s6la_r18', dict(depht=3))


def language_model():
    return {'model.embed_tokens.weight': torch.ones(4, 2), 'model.layers.0.self_attn.q_proj.weight': torch.ones(2, 2)}


def with_nan():
    _, state = make_source('torchvision ResNet-18')
    state['layer1.0.conv1.weight'][0, 0, 0, 0] = float('nan')
    return state


REFUSED = {
    'language model': (language_model, 's6la_r18', {}, r'no network that S6LAResNet can start from.*embed_tokens'),
    'other depth': (
        lambda: make_source('torchvision ResNet-18')[1],
        's6la_r34',
        {},
        r'missing from the checkpoint: layer1\.2.*It fits s6la_r18\. --allow-partial',
    ),
    'other family': (
        lambda: make_source('torchvision ResNet-18')[1],
        's6la_deit_ti',
        {},
        r'no network that S6LAViT can start from.*It fits s6la_r18\.',
    ),
    'NaN': (with_nan, 's6la_r18', {}, r'NaN or Inf in 1 tensors: layer1\.0\.conv1\.weight'),
    'unknown arch': (dict, 's6la_r19', {}, "'s6la_r19' is no architecture"),
    'unknown target': (dict, 's6la_r18', dict(to='head'), "to='head' is not one of"),
    'unknown type': (dict, 's6la_r18', dict(dtype='int8'), "dtype='int8' is not one of"),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_refused(saved, tmp_path, kind):
    state, arch, options, message = REFUSED[kind]
    path = saved(state(), 'source.pth')
    before = sha256(path)
    with pytest.raises(ValueError, match=message) as error:
        convert_checkpoint(path, str(tmp_path / 'out.pth'), arch, **options)
    assert '\n' not in str(error.value)
    assert os.listdir(tmp_path) == ['source.pth'] and sha256(path) == before


def test_partial(saved, tmp_path):
    """What matches is taken, the rest is new; the report has both."""
    _, state = make_source('torchvision ResNet-18')
    done = convert_checkpoint(saved(state), str(tmp_path / 'out.pth'), 's6la_r34', allow_partial=True)
    content = torch.load(done.path, weights_only=True)['state_dict']
    assert content['layer1.1.conv1.weight'].equal(state['layer1.1.conv1.weight'])
    assert 'layer1.2.conv1.weight' in done.match.new() and done.match.problems
    json.dumps([done.match.problems, *map(asdict, done.match.entries)])


def test_source_and_destination(resnet18, tmp_path):
    with pytest.raises(ValueError, match='is the source itself'):
        convert_checkpoint(resnet18[0], resnet18[0], 's6la_r18')
    with pytest.raises(ValueError, match=r'must end in \.pth'):
        convert_checkpoint(resnet18[0], str(tmp_path / 'out.bin'), 's6la_r18')


def test_failed_write_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    (tmp_path / 'out.pth').write_text('of an earlier run')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(OSError, match=r'out\.pth cannot be written: File too large'):
            save_checkpoint(dict(weight=torch.ones(1000)), str(tmp_path / 'out.pth'))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ['out.pth'] and (tmp_path / 'out.pth').read_text() == 'of an earlier run'


def test_unwritable_folder(resnet18, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'out\.pth cannot be written: (Not a directory|File exists)'):
        convert_checkpoint(resnet18[0], str(tmp_path / 'file/out.pth'), 's6la_r18')


@pytest.mark.parametrize(
    ('name', 'arch', 'options'),
    [
        ("authors' Swin", 's6la_swin_t', SWIN),
        ("authors' PVTv2", 's6la_pvtv2_b0', PVT),
        ("authors' ConvNeXt V2", 's6la_convnext_v2_tiny', CONVNEXT_V2),
    ],
)
def test_timm_reads_the_authors_files_alike(saved, tmp_path, name, arch, options):
    """--verify runs timm's networks, loaded by timm's own filter of these names."""
    _, state = make_source(name)
    done = convert_checkpoint(saved(dict(model=state)), str(tmp_path / 'o.pth'), arch, options=options, verify=True)
    assert done.match.layout == SOURCES[name].layout and done.difference < 1e-5


def test_verify_notices_a_wrong_mapping(saved, tmp_path, monkeypatch):
    """A test of the check itself."""
    monkeypatch.setitem(S6LASwin.family.transforms, 'reorder_patch_merging', lambda items, target: None)
    _, state = make_source('timm Swin')
    with pytest.raises(ValueError, match='computes something else: relative difference'):
        convert_checkpoint(saved(state), str(tmp_path / 'out.pth'), 's6la_swin_t', options=SWIN, verify=True)
    assert not (tmp_path / 'out.pth').exists()


def test_dense_vit_is_not_verified(saved, tmp_path):
    _, state = make_source('timm ViT')
    options = dict(VIT, out_type='featmap')
    with pytest.raises(ValueError, match='compares class tokens'):
        convert_checkpoint(saved(state), str(tmp_path / 'out.pth'), 's6la_deit_ti', options=options, verify=True)
    done = convert_checkpoint(saved(state), str(tmp_path / 'out.pth'), 's6la_deit_ti', options=options)
    S6LAViT(**options).load_state_dict(torch.load(done.path)['state_dict'])
