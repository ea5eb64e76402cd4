"""Train a model of any OpenMMLab scope (mmdet, mmseg, mmpretrain): the config decides."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from s6la_mm.checkpoint.reading import weights_only
from s6la_mm.common.cli import (
    add_runner_arguments,
    clear_errors,
    load_config,
    require_file,
    require_writable,
)
from s6la_mm.common.errors import UsageError
from s6la_mm.config_types import find_type, type_name
from s6la_mm.engine import ConfigCheckHook, build_runner, find_last_good, make_resumable, problem_of


def parse_args() -> argparse.Namespace:
    """Parse the command line; ``LOCAL_RANK`` is set where the launcher did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT, or from the newest one in the work dir where none is named',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: float16 with loss scaling on an accelerator, bfloat16 on the CPU',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the actual batch size (needs auto_scale_lr.base_batch_size)',
    )
    add_runner_arguments(parser)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def enable_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper to mixed precision.

    Args:
        cfg (Config): The config, changed in place.

    Raises:
        UsageError: If the config has an optimizer wrapper of its own, or a model with RoIs would train on
            the CPU.
    """
    kind = find_type(cfg.optim_wrapper.get('type', 'OptimWrapper'), OPTIM_WRAPPERS, cfg.get('default_scope'))
    if kind is AmpOptimWrapper:
        print_log('--amp: the config trains in mixed precision already', logger='current')
        return
    if kind is not OptimWrapper:
        name = type_name(cfg.optim_wrapper)
        raise UsageError(f"--amp works with optim_wrapper.type='OptimWrapper', the config has {name!r}")
    if get_device() != 'cpu':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    elif 'roi_head' in cfg.model:
        raise UsageError("--amp needs an accelerator here: mmcv's RoIAlign and NMS know no bfloat16 on the CPU")
    else:
        cfg.optim_wrapper.type = 'CPUAmpOptimWrapper'
        cfg.optim_wrapper.pop('loss_scale', None)


def enable_auto_scale_lr(cfg: Config) -> None:
    """Switch on mmengine's scaling of the learning rate.

    Args:
        cfg (Config): The config, changed in place.

    Raises:
        UsageError: If the config does not say for which batch size its learning rate is meant.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError(
            "--auto-scale-lr needs auto_scale_lr.base_batch_size, the batch size that the config's learning "
            'rate is meant for: add auto_scale_lr = dict(enable=False, base_batch_size=16) to the config'
        )
    cfg.auto_scale_lr.enable = True


def set_resume(cfg: Config, resume: str) -> None:
    """Choose the checkpoint to go on from.

    Args:
        cfg (Config): The config, changed in place.
        resume (str): A path, or ``'auto'`` for the newest whole checkpoint in ``cfg.work_dir``. Without one there the
            training starts anew and the config's ``load_from`` keeps its meaning, so that a job script may
            always pass ``--resume``.

    Raises:
        FileNotFoundError: If ``resume`` names a file that is not there.
        UsageError: If it is damaged, or a run has left checkpoints of which none is whole.
    """
    if resume == 'auto':
        resume = find_last_good(cfg.work_dir)
        if resume is None and os.path.exists(os.path.join(cfg.work_dir, 'last_checkpoint')):
            raise UsageError(
                f'no checkpoint of the run in {cfg.work_dir} is whole, and a new training there would replace them: '
                'choose another --work-dir, or remove last_checkpoint from it'
            )
        if resume is None:
            print_log(f'--resume: no checkpoint in {cfg.work_dir}, the training starts anew', logger='current')
            return
    elif not os.path.isdir(resume):  # DeepSpeed's checkpoints are folders
        require_file(resume, 'checkpoint')
        problem = problem_of(resume)
        if problem:
            raise UsageError(f'{resume} cannot be resumed from: {problem}. --resume alone takes the last whole one')
    cfg.resume = True
    cfg.load_from = resume


def require_same_start(cfg: Config) -> None:
    """Checks that all processes resume from one checkpoint: each has looked for it on its own disk.

    Raises:
        UsageError: If they do not, on every process.
    """
    starts = all_gather_object(cfg.load_from if cfg.get('resume') else None)
    if len(set(starts)) > 1:
        named = ', '.join(sorted({str(start) for start in starts}))
        raise UsageError(
            f'the processes would start from different checkpoints ({named}): the work dir must be on a disk that all '
            'nodes share'
        )


def main() -> None:
    """Train as the command line says."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        if args.amp:
            enable_amp(cfg)
        if args.auto_scale_lr:
            enable_auto_scale_lr(cfg)
        if args.resume is not None:
            set_resume(cfg, args.resume)
        require_writable(cfg.work_dir)
        make_resumable(cfg)
    # DeepSpeed's folders hold more than weights, and are this machine's own.
    is_folder = os.path.isdir(cfg.get('load_from') or '')
    with clear_errors(cfg), nullcontext() if is_folder else weights_only():
        runner = build_runner(cfg)
        require_same_start(cfg)
        runner.register_hook(ConfigCheckHook())
        runner.train()


if __name__ == '__main__':
    main()
