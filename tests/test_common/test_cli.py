"""What the command line tools share."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from s6la_mm.common.cli import DATA_ROOTS, clear_errors, explain, load_config


@pytest.mark.parametrize('variable', DATA_ROOTS)
def test_explain_names_the_variable_of_the_data(variable, monkeypatch):
    monkeypatch.setenv(variable, '/data/set')
    error = FileNotFoundError(2, 'No such file or directory', '/data/set/annotations/instances_train2017.json')
    assert variable in explain(error) and "'/data/set'" in explain(error)
    other = FileNotFoundError(2, 'No such file or directory', '/data/set2/annotations/x.json')
    assert variable not in explain(other)


def test_unknown_type_gets_the_custom_imports_line():
    with pytest.raises(SystemExit, match=r"custom_imports = dict\(imports=\['s6la_mm'\]"), clear_errors():
        MODELS.build(dict(type='S6LANothing'))


def test_too_little_shared_memory_and_a_class_that_is_not_there(tmp_path):
    killed = RuntimeError('DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...')
    assert '/dev/shm is too small' in explain(killed) and explain(RuntimeError('CUDA error')) is None
    (tmp_path / 'pure.py').write_text('from mmengine.hooks import NoSuchHook\ncustom_hooks = [dict(type=NoSuchHook)]\n')
    with pytest.raises(SystemExit, match=r'error: Failed to import NoSuchHook from mmengine.hooks in'), clear_errors():
        _ = load_config(str(tmp_path / 'pure.py')).custom_hooks[0].type


@pytest.mark.parametrize('kind', [KeyError, RuntimeError, ImportError])
def test_other_errors_pass(kind):
    with pytest.raises(kind), clear_errors():
        raise kind('something else')


@pytest.mark.parametrize('kind', [RuntimeError, ImportError])
def test_a_package_that_is_missing_is_one_sentence(kind):
    """As mmdet asks for lvis and panopticapi, on several lines."""
    with pytest.raises(SystemExit, match=r'^error: lvis is not installed: run "pip install lvis"$'), clear_errors():
        raise kind('lvis is not installed: run\n    "pip install lvis"')


def test_work_dir_rule(tmp_path):
    (tmp_path / 'a.py').write_text('x = 1\n')
    (tmp_path / 'b.py').write_text("work_dir = 'mine'\n")
    assert load_config(str(tmp_path / 'a.py')).work_dir == './work_dirs/a'
    assert load_config(str(tmp_path / 'b.py')).work_dir == 'mine'
    assert load_config(str(tmp_path / 'b.py'), work_dir='given').work_dir == 'given'
    assert load_config(str(tmp_path / 'a.py'), cfg_options={'x': 2}).x == 2


def test_explain_names_the_config_keys():
    dataset = dict(data_root='/data/x/', ann_file='annotations/train.json')
    cfg = Config(dict(data_root='/data/x/', train_dataloader=dict(dataset=dataset), names=['/data', 3]))
    error = FileNotFoundError(2, 'No such file or directory', '/data/x/annotations/train.json')
    assert explain(error, cfg) == (
        '/data/x/annotations/train.json does not exist. It comes from the config: set '
        "train_dataloader.dataset.data_root (now '/data/x/') or "
        "train_dataloader.dataset.ann_file (now 'annotations/train.json')."
    )


@pytest.mark.parametrize(
    'error',
    [
        # As mmengine says it of checkpoints, mmseg of annotations, and a DataLoader of its worker.
        FileNotFoundError('/a/b.pth can not be found.'),
        AssertionError('Failed to load `ann_file` /a/b.pth'),
        FileNotFoundError("Caught in worker process 0.\n[Errno 2] No such file or directory: '/a/b.pth'"),
    ],
)
def test_explain_finds_the_path(error):
    assert explain(error) == '/a/b.pth does not exist. Check the path.'
