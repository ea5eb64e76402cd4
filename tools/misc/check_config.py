"""Try a config before it waits in a queue: train some steps, predict, save and resume; estimate time and memory."""

from __future__ import annotations

import argparse
import copy
import math
import os.path as osp
import shutil
import statistics
import tempfile
import time

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from s6la_mm.benchmarks.timing import PeakMemory
from s6la_mm.checkpoint.matching import shortened
from s6la_mm.checkpoint.reading import weights_only
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config
from s6la_mm.common.configs import entry, without_downloads
from s6la_mm.common.errors import UsageError
from s6la_mm.engine import build_runner, find_last_good, make_resumable

STEPS = 3


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='of the training: its disk is looked at (default: as train.py)')
    parser.add_argument('--random-weights', action='store_true', help='do not load init_cfg and load_from')
    parser.add_argument('--processes', type=int, default=1, help='of the training, for its duration (default: 1)')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.processes < 1:
        parser.error('--processes must be 1 or more')
    return args


def shorten(cfg: Config, work_dir: str, random_weights: bool) -> Config:
    """The config with some iterations and one checkpoint in another folder.

    Args:
        cfg (Config): A complete training config, not changed.
        work_dir (str): The folder.
        random_weights (bool): Leave out pretrained weights.
    """
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = work_dir
    # No evaluation: a prediction is made here, and a metric needs all of them.
    never = STEPS + 1
    cfg.train_cfg = dict(type='ResumableIterBasedTrainLoop', max_iters=STEPS, val_interval=never, val_begin=never)
    entry(cfg, 'default_hooks', {}).update(
        checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=STEPS),
        logger=dict(type='LoggerHook', interval=STEPS),
        timer=dict(type='IterTimerHook'),
    )
    cfg.log_processor = dict(by_epoch=False)
    cfg.log_level = 'ERROR'
    for key in ('runner_type', 'strategy'):  # one process needs neither
        cfg.pop(key, None)
    if random_weights:
        cfg.load_from = None
        without_downloads(cfg.model)
    make_resumable(cfg)
    return cfg


def try_training(cfg: Config) -> tuple[Runner, set[str], float]:
    """Trains some steps.

    Args:
        cfg (Config): From :func:`shorten`.

    Returns:
        tuple[Runner, set[str], float]: The runner, the parameters that got no gradient, and the peak memory in bytes.

    Raises:
        UsageError: If a loss is not finite.
    """
    with PeakMemory(get_device()) as peak:
        runner = build_runner(cfg)
        learning = {name: p for name, p in runner.model.named_parameters() if p.requires_grad}
        unused = set(learning)
        for name, parameter in learning.items():
            parameter.register_hook(lambda grad, name=name: unused.discard(name))
        runner.train()
    losses = history(runner, 'loss')
    if not all(map(math.isfinite, losses)):
        raise UsageError(f'losses of the first {STEPS} iterations: {losses}: lower the learning rate')
    return runner, unused, peak.bytes


def history(runner: Runner, name: str) -> list[float]:
    """What the runner has logged of each iteration."""
    return runner.message_hub.get_scalar(f'train/{name}').data[0].tolist()


def check_round_trip(cfg: Config, runner: Runner) -> int:
    """Resumes from the checkpoint in a new runner and compares.

    Args:
        cfg (Config): From :func:`shorten`.
        runner (Runner): The one that wrote the checkpoint.

    Returns:
        int: Bytes of the checkpoint.

    Raises:
        UsageError: If the weights are not what they were.
    """
    path = find_last_good(cfg.work_dir)
    cfg = copy.deepcopy(cfg)
    cfg.update(resume=True, load_from=path, experiment_name='round_trip')
    again = build_runner(cfg)
    again.train()  # all its iterations are done
    wanted, there = runner.model.state_dict(), again.model.state_dict()
    different = [name for name in wanted if not torch.equal(wanted[name], there[name])]
    if different:
        raise UsageError(f'saved and loaded, {len(different)} tensors are not the same: {shortened(different, 3)}')
    return osp.getsize(path)


def predict(cfg: Config, runner: Runner) -> tuple[float, int]:
    """Predicts one batch of the validation set.

    Args:
        cfg (Config): Config with a ``val_dataloader``.
        runner (Runner): With the model.

    Returns:
        tuple[float, int]: Seconds per image, and the number of images in the set.
    """
    loader = Runner.build_dataloader(copy.deepcopy(cfg.val_dataloader), seed=0)
    batch = next(iter(loader))
    runner.model.eval()
    start = time.perf_counter()
    with torch.no_grad():
        results = runner.model.val_step(batch)
    return (time.perf_counter() - start) / len(results), len(loader.dataset)


def main() -> None:
    """Tries and reports."""
    args = parse_args()
    with clear_errors():
        full = load_config(args.config, args.cfg_options, args.work_dir)
    with clear_errors(full), tempfile.TemporaryDirectory() as folder:
        cfg = shorten(full, folder, args.random_weights)
        with weights_only():  # of a load_from
            runner, unused, peak = try_training(cfg)
        print(f'trained    {STEPS} iterations, losses {", ".join(f"{loss:.3f}" for loss in history(runner, "loss"))}')
        size = check_round_trip(cfg, runner)
        print(f'saved      {size / 2**20:.1f} MiB, resumed to the bit')
        if cfg.get('val_dataloader'):
            per_image, images = predict(cfg, runner)
            print(f'predicted  {per_image:.2f} s an image; {images} images: {_duration(per_image * images)}')
        report_cost(full, runner, peak, size, args.processes)
    if unused:
        raise SystemExit(
            f'error: {len(unused)} parameters got no gradient: {shortened(sorted(unused), 3)}. Several processes would '
            'stop at them: freeze or remove them, or set find_unused_parameters=True'
        )


def report_cost(full: Config, runner: Runner, peak: float, size: int, processes: int) -> None:
    """Prints memory, time and disk that the whole training needs."""
    device = get_device()
    of = f' of {torch.cuda.mem_get_info()[1] / 2**30:.1f} GiB' if device == 'cuda' else ''
    print(f'memory     {peak / 2**30:.2f} GiB{of} at the peak, {device}')
    times = [time - data for time, data in zip(history(runner, 'time'), history(runner, 'data_time'))]
    seconds = statistics.median_high(times[1:])
    per_epoch = max(1, len(runner.train_dataloader) // processes)
    if 'max_epochs' in full.train_cfg:
        iterations = per_epoch * full.train_cfg.max_epochs
    else:
        iterations = full.train_cfg.max_iters
    print(
        f'time       {seconds:.2f} s an iteration; {_duration(seconds * per_epoch)} an epoch of {per_epoch} with '
        f'{processes} process{"es" if processes > 1 else ""}, {_duration(seconds * iterations)} for {iterations} '
        '(without waiting for data, communication and evaluation)'
    )
    place = full.work_dir
    while not osp.isdir(place or '.'):
        place = osp.dirname(place)
    kept = full.get('default_hooks', {}).get('checkpoint', {}).get('max_keep_ckpts', -1)
    available = shutil.disk_usage(place or '.').free
    number = f'{kept} are kept' if kept > 0 else 'all are kept: set max_keep_ckpts'
    print(
        f'disk       {size / 2**20:.1f} MiB a checkpoint ({number}); {available / 2**30:.1f} GiB free in {place or "."}'
    )
    if available < 2 * size:
        raise UsageError(f'{place} has no room for two checkpoints: free space, or choose another --work-dir')


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


if __name__ == '__main__':
    main()
