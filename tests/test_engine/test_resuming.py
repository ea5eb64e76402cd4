"""Finding the last whole checkpoint, and what a config gets."""

from __future__ import annotations

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.hooks import CheckpointHook

from s6la_mm.engine import SafeCheckpointHook, find_last_good, make_resumable, problem_of


def save(path, step: int, time: int) -> str:
    torch.save(dict(meta=dict(iter=step), state_dict=dict(weight=torch.rand(64, 64))), path)
    os.utime(path, (time, time))
    return str(path)


def cut_short(path: str) -> None:
    with open(path, 'r+b') as file:
        file.truncate(os.path.getsize(path) // 2)


def flip_a_bit(path: str) -> None:
    with open(path, 'r+b') as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def empty(path: str) -> None:
    with open(path, 'w'):
        pass


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (cut_short, 'damaged or incomplete'),
        (flip_a_bit, 'checksum'),
        (empty, 'is empty'),
        (os.remove, 'does not exist'),
    ],
)
def test_damaged_newest_checkpoint_is_passed_over(tmp_path, damage, words):
    older, newest = save(tmp_path / 'iter_10.pth', 10, 100), save(tmp_path / 'iter_20.pth', 20, 200)
    save(tmp_path / 'iter_5.pth', 5, 50)
    (tmp_path / 'last_checkpoint').write_text(newest)
    assert problem_of(newest) is None and find_last_good(str(tmp_path)) == newest
    damage(newest)
    assert words in problem_of(newest)
    assert find_last_good(str(tmp_path)) == older


def test_last_checkpoint_counts_more_than_age(tmp_path):
    """A run that went back to an older checkpoint goes on from there."""
    older = save(tmp_path / 'iter_10.pth', 10, 100)
    save(tmp_path / 'iter_20.pth', 20, 200)
    (tmp_path / 'last_checkpoint').write_text(older)
    assert find_last_good(str(tmp_path)) == older


@pytest.mark.parametrize('note', ['', '\n', None])
def test_note_that_a_kill_emptied(tmp_path, note):
    newest = save(tmp_path / 'epoch_2.pth', 20, 200)
    save(tmp_path / 'best_coco_bbox_mAP_epoch_2.pth', 20, 300)  # holds no optimizer
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note)
    assert find_last_good(str(tmp_path)) == newest


def test_work_dir_that_was_moved(tmp_path):
    newest = save(tmp_path / 'iter_20.pth', 20, 200)
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_20.pth')
    assert find_last_good(str(tmp_path)) == newest


def test_nothing_to_resume_from(tmp_path):
    assert find_last_good(str(tmp_path)) is None
    assert find_last_good(str(tmp_path / 'missing')) is None


def test_folder_of_deepspeed_is_taken_as_it_is(tmp_path):
    assert problem_of(str(tmp_path)) is None


@pytest.mark.parametrize(
    ('train_cfg', 'expected'),
    [
        (dict(by_epoch=True, max_epochs=2), 'ResumableEpochBasedTrainLoop'),
        (dict(by_epoch=False, max_iters=2), 'ResumableIterBasedTrainLoop'),
        (dict(type='EpochBasedTrainLoop', max_epochs=2), 'ResumableEpochBasedTrainLoop'),
        (dict(type='IterBasedTrainLoop', max_iters=2), 'ResumableIterBasedTrainLoop'),
        (dict(type='TheirOwnLoop'), 'TheirOwnLoop'),
    ],
)
def test_make_resumable_chooses_the_loop(train_cfg, expected):
    cfg = Config(dict(train_cfg=train_cfg))
    make_resumable(cfg)
    assert cfg.train_cfg.type == expected and 'by_epoch' not in cfg.train_cfg


def test_make_resumable_keeps_what_the_config_says():
    own = dict(type='NonFiniteHook', max_consecutive=3)
    checkpoint = dict(interval=5, max_keep_ckpts=2)
    cfg = Config(
        dict(
            train_cfg=dict(by_epoch=True, max_epochs=1),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', **checkpoint), visualization=None),
            custom_hooks=[own],
            custom_imports=dict(imports=['theirs'], allow_failed_imports=False),
        )
    )
    make_resumable(cfg)
    make_resumable(cfg)  # a second time changes nothing
    safe = dict(type='SafeCheckpointHook', **checkpoint)
    assert cfg.default_hooks == dict(checkpoint=safe, visualization=None, preemption=dict(type='PreemptionHook'))
    assert cfg.custom_hooks == [own]
    assert cfg.custom_imports.imports == ['theirs', 's6la_mm']


def test_make_resumable_leaves_another_checkpoint_hook_alone():
    cfg = Config(dict(train_cfg=dict(by_epoch=True), default_hooks=dict(checkpoint=dict(type='TheirHook'))))
    make_resumable(cfg)
    assert cfg.default_hooks == dict(checkpoint=dict(type='TheirHook'))


@pytest.mark.parametrize(
    'kind',
    [
        CheckpointHook,
        'mmengine.CheckpointHook',
        'mmengine.hooks.CheckpointHook',
        'mmengine.hooks.checkpoint_hook.CheckpointHook',
        LazyObject('mmengine.hooks', 'CheckpointHook'),
        LazyAttr('CheckpointHook', LazyObject('mmengine.hooks')),
    ],
)
def test_make_resumable_reads_every_form_of_a_type(kind):
    cfg = Config(dict(train_cfg=dict(type=LazyObject('mmengine.runner', 'IterBasedTrainLoop'), max_iters=1)))
    cfg.custom_hooks, cfg.default_hooks = [dict(type=kind)], None
    make_resumable(cfg)
    assert cfg.train_cfg.type == 'ResumableIterBasedTrainLoop'
    assert [hook.type for hook in cfg.custom_hooks] == ['SafeCheckpointHook']
    assert set(cfg.default_hooks) == {'checkpoint', 'preemption', 'nonfinite'}


class TheirCheckpointHook(CheckpointHook):
    pass


class TheirSafeHook(SafeCheckpointHook):
    pass


def test_make_resumable_keeps_classes_of_others():
    """One that derives from the safe hook is as good; with another one, it is said what is missing."""
    for kind, others in ((TheirSafeHook, {'preemption', 'nonfinite'}), (TheirCheckpointHook, set())):
        cfg = Config(dict(train_cfg=dict(by_epoch=True), default_hooks=dict(checkpoint=dict(type=kind))))
        make_resumable(cfg)
        assert cfg.default_hooks.checkpoint == dict(type=kind) and set(cfg.default_hooks) == {'checkpoint', *others}


@pytest.mark.parametrize('imports', [{}, dict(custom_imports=None), dict(custom_imports=dict(imports='theirs'))])
def test_what_is_written_of_a_config_imports_this_package(imports):
    cfg = Config(dict(train_cfg=dict(by_epoch=True), **imports))
    make_resumable(cfg)
    assert cfg.custom_imports.imports[-1] == 's6la_mm' and "type='SafeCheckpointHook'" in cfg.pretty_text
    assert cfg.custom_imports.imports[:-1] == (['theirs'] if imports.get('custom_imports') else [])


def test_checkpoints_in_a_folder_of_their_own(tmp_path):
    """The out_dir of the checkpoint hook: older ones are looked for there too, remote ones taken as they are."""
    (tmp_path / 'out').mkdir()
    older, newest = save(tmp_path / 'out/iter_10.pth', 10, 100), save(tmp_path / 'out/iter_20.pth', 20, 200)
    note = tmp_path / 'last_checkpoint'
    note.write_text(newest)
    cut_short(newest)
    assert find_last_good(str(tmp_path)) == older
    note.write_text('s3://bucket/iter_20.pth')
    assert find_last_good(str(tmp_path)) == 's3://bucket/iter_20.pth'
