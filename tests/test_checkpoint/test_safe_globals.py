"""mmengine's checkpoints load with ``weights_only=True``; what runs code does not."""

import copy
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner
from releases import load
from torch import nn

import s6la_mm  # noqa: F401  (importing it is what allow-lists)
from s6la_mm.checkpoint import allow_mmengine_checkpoints
from s6la_mm.compat import SAFE_GLOBALS_HAVE_NAMES


class TinyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, *inputs, mode='tensor'):
        out = self.linear(torch.stack(inputs))
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


class NumpyMetric(BaseMetric):
    """COCO's metrics are numpy scalars, and the best of them goes into the checkpoint."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(mAP=np.float64(0.5), count=np.int64(3), ok=np.bool_(True), half=np.float32(0.25))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """What a Runner saves after two epochs with validation: weights, optimizer, schedulers, message hub."""
    work_dir = tmp_path_factory.mktemp('run')
    loader = dict(batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), dataset=[torch.ones(2)] * 4)
    runner = Runner(
        TinyModel(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
            dict(type='CosineAnnealingLR'),
        ],
        val_dataloader=copy.deepcopy(loader),
        val_cfg=dict(),
        val_evaluator=dict(type=NumpyMetric),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='mAP')),
        experiment_name='safe_globals',
        log_level='ERROR',
        default_scope='mmengine',
    )
    runner.train()
    return work_dir / 'epoch_2.pth'


@pytest.fixture
def bare_torch():
    """torch's list of safe globals without anybody's additions, for one test."""
    added = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(added)


def test_runner_checkpoint_loads(checkpoint):
    content = load(checkpoint)
    assert set(content) >= {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}
    assert content['meta']['epoch'] == 2
    hub = MessageHub.get_instance('loaded')
    hub.load_state_dict(content['message_hub'])
    losses = hub.get_scalar('train/loss')
    assert isinstance(losses, HistoryBuffer) and losses.data[0].size == 4
    assert losses.mean() == pytest.approx(losses.data[0].mean()) and losses.max() >= losses.min() > 0
    assert hub.get_scalar('val/mAP').current() == 0.5
    assert hub.get_info('best_score') == 0.5


@pytest.mark.skipif(not SAFE_GLOBALS_HAVE_NAMES, reason="torch's list of safe globals takes names since 2.6")
def test_runner_checkpoint_needs_the_list(checkpoint, bare_torch):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=True)
    allow_mmengine_checkpoints()
    torch.load(checkpoint, weights_only=True)
    allow_mmengine_checkpoints()  # twice is as good as once
    torch.load(checkpoint, weights_only=True)


def test_resume(checkpoint):
    runner = Runner(
        TinyModel(),
        work_dir=str(checkpoint.parent),
        train_dataloader=dict(
            batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), dataset=[torch.ones(2)] * 4
        ),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        load_from=str(checkpoint),
        resume=True,
        experiment_name='safe_globals_resumed',
        log_level='ERROR',
        default_scope='mmengine',
    )
    runner.train()
    assert runner.epoch == 3 and runner.message_hub.get_scalar('train/loss').data[0].size == 6


@pytest.mark.parametrize('name', ['bool', 'int8', 'uint8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64'])
def test_numpy_values(tmp_path, name):
    values = dict(scalar=np.dtype(name).type(1), array=np.ones((2, 3), dtype=name), dtype=np.dtype(name))
    torch.save(values, tmp_path / 'values.pth')
    loaded = load(tmp_path / 'values.pth')
    assert loaded['scalar'] == 1 and loaded['scalar'].dtype == loaded['dtype'] == np.dtype(name)
    np.testing.assert_array_equal(loaded['array'], values['array'])


def renamed_globals(path, old, new):
    """Rewrites a checkpoint's pickle with other module names, as another version of numpy would have."""
    with zipfile.ZipFile(path) as archive:
        content = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for info, data in content.items():
            if info.filename.endswith('data.pkl'):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(info, data)


def test_files_of_the_other_numpy(tmp_path):
    """numpy 2 says numpy._core where numpy 1 said numpy.core."""
    path = tmp_path / 'values.pth'
    torch.save(dict(scalar=np.float64(2), array=np.arange(3)), path)
    names = [b'numpy._core.multiarray', b'numpy.core.multiarray']
    renamed_globals(path, *(names if np.__version__ >= '2' else names[::-1]))
    loaded = load(path)
    assert loaded['scalar'] == 2 and loaded['array'].tolist() == [0, 1, 2]


class Call:
    """Pickles as a call, which unpickling makes."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attribute(owner, name):
    return Call(getattr, owner, name)


@pytest.mark.parametrize(
    'payload',
    [
        Call(os.system, 'exit 3'),
        Call(os.mkdir, 'created'),
        Call(eval, '1 + 1'),
        Call(__import__, 'os'),
        Call(open, 'created', 'w'),
        attribute(np.ndarray, 'tofile'),
        attribute(torch.Tensor, '__init__'),
        attribute(HistoryBuffer, '__init__'),
        attribute(HistoryBuffer, '__subclasses__'),
        attribute(HistoryBuffer, '_statistics_methods'),
        attribute(HistoryBuffer([1.0], [1]), '__class__'),
        attribute(attribute(HistoryBuffer, 'min'), '__globals__'),
        Call(np.load, 'values.npy', None, True),
        Call(np.fromfile, 'values.npy'),
        nn.Linear(1, 1),
    ],
    ids=lambda payload: getattr(payload, 'call', ['module'])[0].__name__ if isinstance(payload, Call) else 'module',
)
def test_malicious_files_are_refused(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, payload=payload), tmp_path / 'bad.pth')
    with pytest.raises((pickle.UnpicklingError, ValueError), match=r'(?i)unsupported|refused|safe_globals'):
        load(tmp_path / 'bad.pth')
    assert os.listdir(tmp_path) == ['bad.pth']


@pytest.mark.skipif(not SAFE_GLOBALS_HAVE_NAMES, reason='mmengine lists nothing for torch below 2.6')
def test_getattr_that_others_list(tmp_path, bare_torch):
    """As onedl-mmengine does while it loads: here the real one stays out."""
    allow_mmengine_checkpoints()
    torch.save(attribute(np.ndarray, 'tofile'), tmp_path / 'bad.pth')
    torch.serialization.add_safe_globals([getattr])
    with pytest.raises((pickle.UnpicklingError, ValueError), match='refused to read attribute'):
        load(tmp_path / 'bad.pth')


def by_opcodes(body: bytes) -> bytes:
    """A pickle of protocol 2, written by hand."""
    return b'\x80\x02' + body + b'.'


@pytest.mark.parametrize(
    'body',
    [
        b'(imkdir_nothing\nmkdir\n',  # INST
        b'(cos\nmkdir\nX\x07\x00\x00\x00createdo',  # OBJ
        b'\x82\x01',  # EXT1
        b'ctorch\nTensor\n}X\x03\x00\x00\x00addK\x01sb',  # BUILD on a type
        b'ctorch._utils\n_rebuild_tensor_v2\nN}X\x03\x00\x00\x00addK\x01s\x86b',  # BUILD on a function
        b'ccollections\nOrderedDict\n)RK\x01a',  # APPEND to no list
    ],
    ids=['inst', 'obj', 'ext', 'build a type', 'build a function', 'append'],
)
def test_opcodes_that_weights_do_not_need(tmp_path, body):
    """Objects that are named may not be changed, and nothing is called but what the list has."""
    path = tmp_path / 'bad.pth'
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        content = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for info, data in content.items():
            archive.writestr(info, by_opcodes(body) if info.filename.endswith('data.pkl') else data)
    before = torch.Tensor.add, dict(vars(torch._utils._rebuild_tensor_v2)), HistoryBuffer.mean
    with pytest.raises(pickle.UnpicklingError):
        load(path)
    assert before == (torch.Tensor.add, dict(vars(torch._utils._rebuild_tensor_v2)), HistoryBuffer.mean)


def test_legacy_files_and_open_files(tmp_path):
    """What torch wrote before 1.6, and files that are open already."""
    values = dict(weight=torch.arange(3.0), history=HistoryBuffer([1.0, 2.0], [1, 1]))
    torch.save(values, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    with open(tmp_path / 'legacy.pth', 'rb') as file:
        for source in (tmp_path / 'legacy.pth', file):
            loaded = load(source)
            assert loaded['weight'].tolist() == [0, 1, 2] and loaded['history'].mean() == 1.5
    torch.save(Call(os.mkdir, str(tmp_path / 'created')), tmp_path / 'bad.pth', _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / 'bad.pth')
    assert not (tmp_path / 'created').exists()


def test_methods_of_history_buffer_cannot_be_called_by_a_file(tmp_path):
    """A file names them as what the buffer's statistics are; calling one is another matter."""
    torch.save(Call(HistoryBuffer.register_statistics, None), tmp_path / 'bad.pth')
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load(tmp_path / 'bad.pth')


def test_object_arrays_run_nothing(tmp_path):
    array = np.empty(1, dtype=object)
    array[0] = Call(os.mkdir, str(tmp_path / 'created'))
    torch.save(array, tmp_path / 'bad.pth')
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / 'bad.pth')
    assert not (tmp_path / 'created').exists()
