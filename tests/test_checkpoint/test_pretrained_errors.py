"""What ``init_cfg=dict(type='Pretrained')`` refuses, in which words, and that the network stays as it was."""

import copy
import os
import pickle
import re

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from tool_runner import ROOT

from s6la_mm.backbones import S6LAResNet
from s6la_mm.checkpoint import load_pretrained
from s6la_mm.checkpoint.reading import weights_only


def plain(depth=50, **options):
    return ResNet(depth, base_channels=8, **options)


def s6la(depth=50, **options):
    return S6LAResNet(depth, **dict(base_channels=8, state_dim=8) | options)


def pretrained(checkpoint):
    return dict(type='Pretrained', checkpoint=str(checkpoint))


def assert_untouched_by(network, *args, match, error=ValueError, **kwargs):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(error, match=match):
        load_pretrained(network, *args, **kwargs)
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize(
    ('source', 'target', 'match'),
    [
        (50, 101, r'missing from the checkpoint.*layer3\.6.*depth'),
        (50, 18, r'other shape.*layer1\.0\.conv1.*not in the backbone.*conv3.*depth'),
        (101, 50, r'not in the backbone.*layer3\.6.*depth'),
        (18, 34, r'missing from the checkpoint.*layer1\.2.*depth'),
        (34, 18, r'not in the backbone.*layer1\.2.*depth'),
    ],
)
def test_other_depth(saved, source, target, match):
    path = saved(plain(source))
    assert_untouched_by(s6la(target), path, match='(?s)checkpoint.pth.*S6LAResNet.*' + match)
    with pytest.raises(ValueError, match=match):
        s6la(target, init_cfg=pretrained(path)).init_weights()


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        (dict(deep_stem=True), r'missing from the checkpoint: stem\.0\.weight.*deep_stem'),
        (dict(in_channels=4), r'number of input channels .*adapt_channels=True.*conv1\.weight \(8, 3, 7, 7\) against'),
        (dict(base_channels=16), r'other shape: conv1\.weight \(8, 3, 7, 7\) against \(16, 3, 7, 7\)'),
        (dict(groups=4, base_width=4), r'other shape.*layer1\.0\.conv1\.weight.*groups'),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), r'missing from the checkpoint: gn1\.weight'),
    ],
    ids=str,
)
def test_other_options(saved, options, match):
    assert_untouched_by(s6la(**options), saved(plain()), match=match)


@pytest.mark.parametrize(
    ('source', 'target', 'match'),
    [
        (dict(), dict(state_dim=16), r'other shape: initial_state \(8,\) against \(16,\).*state_dim'),
        (dict(), dict(input_norm=None), r'4 not in the backbone: cells\.layer1\.input_norm\.weight'),
        # The other way round it would compute something else than the checkpoint's network, without a word.
        (dict(input_norm=None), dict(), r'4 missing from the checkpoint: cells\.layer1\.input_norm\.weight'),
        (
            dict(),
            dict(stage_with_state=(False, True, True, True)),
            r'not in the backbone: layer1\.0\.read\.weight.*cells\.layer1',
        ),
    ],
    ids=str,
)
def test_s6la_file_with_other_options(saved, source, target, match):
    path = saved(s6la(18, **source))
    assert_untouched_by(s6la(18, **target), path, match=match)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_not_finite(saved, value):
    state = plain(18).state_dict()
    state['layer2.0.conv1.weight'][0, 0, 0, 0] = value
    state['layer3.0.bn1.running_var'][0] = value
    assert_untouched_by(
        s6la(18), saved(state), match=r'NaN or Inf in 2 tensors: layer2\.0\.conv1\.weight, layer3\.0\.bn1\.running_var'
    )


def test_pretrained_given_as_a_class_is_checked_too(saved):
    """mmengine's pure Python configs write ``type=PretrainedInit``."""
    source = saved(plain(50))
    good, bad = (s6la(d, init_cfg=dict(type=PretrainedInit, checkpoint=source)) for d in (50, 101))
    good.init_weights()
    torch.testing.assert_close(good.conv1.weight.detach(), torch.load(source)['conv1.weight'], rtol=0, atol=0)
    with pytest.raises(ValueError, match='layer3'):
        bad.init_weights()


def test_init_weights_can_be_repeated_after_a_failed_load(saved, tmp_path):
    network = s6la(18, init_cfg=pretrained(tmp_path / 'late.pth'))
    with pytest.raises(FileNotFoundError):
        network.init_weights()
    source = plain(18)
    saved(source, 'late.pth')
    network.init_weights()
    torch.testing.assert_close(network.conv1.weight, source.conv1.weight, rtol=0, atol=0)


def test_wrong_prefix(saved):
    path = saved(dict(state_dict={f'backbone.{k}': v for k, v in plain(18).state_dict().items()}))
    assert_untouched_by(s6la(18), path, 'student.', match=r"prefix 'student\.'.*missing from the checkpoint.*prefix=")


@pytest.mark.parametrize(
    'content', [dict(), dict(model=dict(conv1=torch.ones(1)), epoch=3), dict(state_dict={})], ids=str
)
def test_file_without_weights(saved, content):
    assert_untouched_by(s6la(18), saved(content), match='holds no weights|missing from the checkpoint')


def test_missing_file(tmp_path):
    """The path, and what to set."""
    path = str(tmp_path / 'nowhere.pth')
    assert_untouched_by(s6la(18), path, error=FileNotFoundError, match=r'nowhere\.pth.*(init_cfg|checkpoint)')


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'text'])
def test_damaged_file(saved, kind):
    """torch's own messages don't name the file, so somebody with three checkpoints could not tell which it is."""
    path = saved(plain(18), 'damaged.pth')
    with open(path, 'rb') as file:
        content = file.read()
    content = dict(truncated=content[: len(content) // 2], empty=b'', text=b'version https://git-lfs')[kind]
    with open(path, 'wb') as file:
        file.write(content)
    assert_untouched_by(s6la(18), path, error=Exception, match=r'damaged\.pth')


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize('by_url', [False, True])
def test_malicious_file_is_not_executed(saved, tmp_path, monkeypatch, by_url):
    """Weights are loaded with weights_only=True, also where mmengine goes through torch.hub (torchvision://, https://)."""
    done = tmp_path / 'executed'
    name = 'resnet50-0676ba61.pth'
    path = saved(dict(state_dict={}, payload=Payload(done)), name)
    if by_url:
        monkeypatch.setenv('TORCH_HOME', str(tmp_path))
        cache = tmp_path / 'hub' / 'checkpoints'
        cache.mkdir(parents=True)
        os.rename(path, cache / name)
        path = 'torchvision://resnet50'
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load_pretrained(s6la(50), path)
    assert not done.exists()


def test_loads_beside_the_workaround_variable(saved, monkeypatch):
    """Many OpenMMLab users set it since torch 2.6; a good file must not be called damaged for it."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    source = plain(18)
    network = s6la(18)
    load_pretrained(network, saved(source))
    torch.testing.assert_close(network.conv1.weight, source.conv1.weight, rtol=0, atol=0)


@pytest.mark.parametrize('content', [torch.ones(3), [torch.ones(3)]], ids=['tensor', 'list'])
def test_file_that_holds_no_dict(saved, content):
    assert_untouched_by(s6la(18), saved(content), match=r'checkpoint\.pth')


def test_check_config_loads_urls_with_weights_only():
    text = (ROOT / 'tools/misc/check_config.py').read_text()
    assert re.search(r'with weights_only\(\):.*\n +.* = try_training', text)


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_tools_load_urls_with_weights_only(tool):
    """mmengine's loader of URLs, which they use, would run the code in a file."""
    text = (ROOT / f'tools/{tool}.py').read_text()
    assert re.search(r'with clear_errors\(cfg\), .*weights_only\(\):', text)


def test_weights_only_holds_for_mmengine(saved, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    cache, done = tmp_path / 'hub' / 'checkpoints', tmp_path / 'executed'
    cache.mkdir(parents=True)
    os.rename(saved(dict(state_dict={}, payload=Payload(done)), 'x.pth'), cache / 'x.pth')
    with pytest.raises(pickle.UnpicklingError), weights_only():
        CheckpointLoader.load_checkpoint('https://nowhere.invalid/x.pth', map_location='cpu')
    assert not done.exists() and 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ
