"""Which checkpoint to resume from, and what a config of others lacks for runs that survive."""

from __future__ import annotations

import glob
import logging
import os.path as osp
import zipfile

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ..common.configs import entry, hooks_of
from ..common.files import put_back
from ..config_types import find_type, type_name

# As configs/_base_/s6la.py has them.
_HOOKS = dict(preemption='PreemptionHook', nonfinite='NonFiniteHook')
_LOOPS = {EpochBasedTrainLoop: 'ResumableEpochBasedTrainLoop', IterBasedTrainLoop: 'ResumableIterBasedTrainLoop'}


def problem_of(path: str) -> str | None:
    """What is wrong with a checkpoint file, or None; reads it once and unpickles nothing.

    Args:
        path (str): The file that ``torch.save`` wrote, or a folder of DeepSpeed, which is taken as it is.

    Returns:
        str or None: The reason why it cannot be loaded. What lies on a remote backend is taken as it is.

    Example:
        >>> problem_of('missing.pth')
        'it does not exist'
    """
    if osp.isdir(path) or '://' in path:
        return None
    if not osp.isfile(path):
        return 'it does not exist'
    if osp.getsize(path) == 0:
        return 'it is empty'
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes a checksum for every tensor
            damaged = archive.testzip()
        return None if damaged is None else f'the checksum of {damaged} is wrong'
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        return f'it is damaged or incomplete ({error})'


def find_last_good(work_dir: str) -> str | None:
    """The newest checkpoint of a work dir that is whole.

    Args:
        work_dir (str): Where the run has its ``last_checkpoint``.

    Returns:
        str or None: The path that ``last_checkpoint`` names, else the newest other one that can be resumed from. Each
        that is passed over is logged with its reason. None if there is none.
    """
    candidates = []
    folders = [work_dir]
    note = osp.join(work_dir, 'last_checkpoint')
    if osp.isfile(note):
        with open(note, encoding='utf-8', errors='replace') as file:
            last = file.read().strip()
        if last:
            # A work dir that was moved is found by name.
            beside = osp.join(work_dir, osp.basename(last))
            candidates.append(last if osp.exists(last) or not osp.exists(beside) else beside)
            folders.append(osp.dirname(last))  # the out_dir of the checkpoint hook
    for folder in folders:
        put_back(folder)
    patterns = ('epoch_*.pth', 'iter_*.pth', 'preempted_*.pth')
    others = [p for f in folders for pattern in patterns for p in glob.glob(osp.join(glob.escape(f), pattern))]
    candidates += sorted(others, key=osp.getmtime, reverse=True)
    seen = set()
    for path in candidates:
        if osp.abspath(path) in seen:
            continue
        seen.add(osp.abspath(path))
        problem = problem_of(path)
        if problem is None:
            return path
        print_log(f'{path} is passed over: {problem}', logger='current', level=logging.WARNING)
    return None


def make_resumable(cfg: Config) -> None:
    """Gives a config of others the loops and hooks that the configs of this package name, for runs that survive a kill.

    ``EpochBasedTrainLoop`` and ``IterBasedTrainLoop`` become resumable, ``CheckpointHook`` becomes safe, and
    ``PreemptionHook`` and ``NonFiniteHook`` are added, in whatever form the config names its types. A config that names
    others keeps them, which is logged.

    Args:
        cfg (Config): A training config, changed in place; what is dumped to the work dir imports this package.

    Example:
        >>> cfg = Config(dict(train_cfg=dict(by_epoch=True, max_epochs=12), default_hooks=dict()))
        >>> make_resumable(cfg)
        >>> cfg.train_cfg.type
        'ResumableEpochBasedTrainLoop'
    """
    scope = cfg.get('default_scope')
    train = cfg.train_cfg
    if 'type' not in train:
        train['type'] = 'EpochBasedTrainLoop' if train.pop('by_epoch', True) else 'IterBasedTrainLoop'
    loop = find_type(train['type'], LOOPS, scope)
    if loop in _LOOPS:
        train['type'] = _LOOPS[loop]
    elif not type_name(train).startswith('Resumable'):
        print_log(f'{type_name(train)} of the config stays: a resume goes on as that loop does', logger='current')
    hooks = entry(cfg, 'default_hooks', {})
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    present = set()
    for hook in hooks_of(cfg):
        kind = find_type(hook.get('type'), HOOKS, scope)
        if kind is CheckpointHook:
            hook['type'] = 'SafeCheckpointHook'
            kind = HOOKS.get('SafeCheckpointHook')
        present |= {base.__name__ for base in getattr(kind, '__mro__', ())}
    if 'SafeCheckpointHook' in present:
        hooks.update({key: dict(type=kind) for key, kind in _HOOKS.items() if kind not in present and key not in hooks})
    elif hooks['checkpoint']:
        print_log(
            f'{type_name(hooks["checkpoint"])} of the config stays, without {" and ".join(_HOOKS.values())}, which '
            'need a SafeCheckpointHook: a kill or a full disk may spoil a checkpoint',
            logger='current',
            level=logging.WARNING,
        )
    imports = entry(cfg, 'custom_imports', dict(imports=[], allow_failed_imports=False))
    names = [imports['imports']] if isinstance(imports['imports'], str) else list(imports['imports'])
    if 's6la_mm' not in names:
        imports['imports'] = [*names, 's6la_mm']
