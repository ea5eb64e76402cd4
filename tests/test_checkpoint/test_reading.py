"""Reading files: wrappers, parts and EMA; and a sentence for every file that cannot be read."""

import io
import zipfile

import pytest
import torch
from torch import nn

from s6la_mm.checkpoint import read_weights

STATE = {'conv.weight': torch.ones(2, 3), 'conv.bias': torch.zeros(2)}


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
@pytest.mark.parametrize('part', ['state_dict', 'model', 'module', ''])
def test_parts_and_wrappers(saved, prefix, part):
    wrapped = {prefix + key: tensor for key, tensor in STATE.items()}
    weights = read_weights(saved({part: wrapped, 'epoch': 3, 'arch': 'a', 'optimizer': [1]} if part else wrapped))
    assert weights.tensors.keys() == STATE.keys() and weights.part == part
    assert weights.meta == (dict(epoch=3, arch='a') if part else {})


def test_compiled_part_of_a_model(saved):
    """torch.compile of the backbone alone."""
    weights = read_weights(saved({'backbone._orig_mod.conv.weight': torch.ones(1)}))
    assert [*weights.tensors] == ['backbone.conv.weight']


@pytest.mark.parametrize('part', ['state_dict_ema', 'model_ema'])
def test_ema(saved, part):
    averaged = {f'module.{key}': tensor + 1 for key, tensor in STATE.items()}
    path = saved({'state_dict': STATE, part: averaged})
    assert read_weights(path).tensors['conv.bias'].eq(0).all()
    weights = read_weights(path, ema=True)
    assert weights.tensors['conv.bias'].eq(1).all() and weights.part == part


@pytest.mark.parametrize('ema', [False, True])
def test_ema_of_mmengine(saved, ema):
    """Its hook swaps the two when it saves: the average is the state_dict."""
    from mmengine.hooks import EMAHook
    from mmengine.model import ExponentialMovingAverage

    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    hook = EMAHook()
    hook.ema_model = ExponentialMovingAverage(model, momentum=0.5)
    nn.init.ones_(model.weight)
    hook.ema_model.update_parameters(model)  # the first update copies
    nn.init.constant_(model.weight, 2.0)
    hook.ema_model.update_parameters(model)
    content = dict(state_dict=model.state_dict(), ema_state_dict=hook.ema_model.state_dict())
    hook._swap_ema_state_dict(content)
    assert float(read_weights(saved(content), ema=ema).tensors['weight']) == 1.5


def test_no_ema(saved):
    with pytest.raises(ValueError, match=r"no exponential moving average.*'state_dict'.*--ema"):
        read_weights(saved(dict(state_dict=STATE)), ema=True)


def test_what_is_no_tensor_is_kept_apart(saved):
    weights = read_weights(saved(dict(state_dict=STATE | {'version': 3, 'x._extra_state': None})))
    assert weights.tensors.keys() == STATE.keys() and weights.others == {'version': 3}


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'weights.safetensors'
    safetensors.save_file(STATE, path)
    assert read_weights(path).tensors['conv.weight'].equal(STATE['conv.weight'])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r'weights\.safetensors cannot be loaded: it is damaged'):
        read_weights(path)


def test_old_format(tmp_path):
    """Before torch 1.6, which is no zip."""
    path = tmp_path / 'old.pth'
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    assert read_weights(path).tensors['conv.weight'].equal(STATE['conv.weight'])


def a_zip(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Unknown:
    """A class that a training script has pickled."""


def a_file(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


REFUSED = {
    'empty file': (b'', r'is empty \(0 bytes\)'),
    'text': (b'version https://git-lfs.github.com/spec/v1\n', 'is damaged, no PyTorch file'),
    'truncated': (a_file(STATE)[:600], 'is damaged, no PyTorch file'),
    'a wrong zip': (a_zip(readme='no weights'), 'is damaged, no PyTorch file'),
    'pickled code': (a_file(dict(state_dict=STATE, args=Unknown())), r'needs the code of \S*Unknown.*checkpoints\.md'),
    'empty dict': (a_file({}), 'holds no weights: its keys are none'),
    'no weights': (a_file(dict(epoch=3, lr=0.1)), "holds no weights: its keys are 'epoch', 'lr'"),
    'class names': (a_file({0: 'tench', 1: 'goldfish'}), 'holds no weights: its keys are 0, 1'),
    'a list': (a_file([torch.ones(1)]), 'holds a list, not a dict'),
    'a name twice': (a_file({'module.a': torch.ones(1), 'a': torch.ones(1)}), 'has a twice, once as a'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_refused(tmp_path, kind):
    content, message = REFUSED[kind]
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'(?s)file\.pth ' + f'.*{message}') as error:
        read_weights(path)
    assert '\n' not in str(error.value) and 'weights_only=False' not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist: give the path'):
        read_weights(tmp_path / 'nowhere.pth')
    with pytest.raises(ValueError, match='is a folder'):
        read_weights(tmp_path)


def test_script_module(tmp_path):
    path = tmp_path / 'script.pt'
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(ValueError, match=r'script\.pt cannot be loaded.*TorchScript'):
        read_weights(path)
