"""A training of seconds: what the tests of several tools start from."""

from __future__ import annotations

import shutil
from pathlib import Path

from tool_runner import ROOT, call, check

TINY = """
_base_ = {base!r}
model = {model}
train_cfg = dict(max_iters=4, val_interval=2)
generator = dict(num_train=8, num_val=3, image_size=64)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(generator=generator))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(generator=generator))
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""
# A model that knows nothing yet finds something.
MODELS = {
    'mask-rcnn': 'dict(test_cfg=dict(rcnn=dict(score_thr=0.0)))',
    'retinanet': 'dict(test_cfg=dict(score_thr=0.0))',
}


def train_tiny(kind: str, folder: Path) -> None:
    base = str(ROOT / f'configs/quickstart/{kind}_s6la-r18_shapes.py')
    (folder / 'tiny.py').write_text(TINY.format(base=base, model=MODELS[kind]))
    data = dict(S6LA_SHAPES_ROOT=str(folder / 'shapes'))
    check(call('train.py', folder / 'tiny.py', '--work-dir', folder / 'run', **data))


def describe(folder: Path) -> dict:
    return dict(
        config=folder / 'tiny.py',
        work_dir=folder / 'run',
        data=dict(S6LA_SHAPES_ROOT=str(folder / 'shapes')),
        images=folder / 'shapes/val',
    )


def copy_run(training: dict, folder: Path) -> Path:
    """A copy of the work dir for a test that changes it."""
    shutil.copytree(training['work_dir'], folder)
    for file in folder.glob('last_checkpoint'):
        file.write_text(file.read_text().replace(str(training['work_dir']), str(folder)))
    return folder
