"""Try a config before it waits in a queue: train some steps, predict, save and resume; estimate time and memory."""

from __future__ import annotations

import argparse
import copy
import io
import math
import os.path as osp
import shutil
import statistics
import tempfile
import time
from contextlib import redirect_stdout

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from s6la_mm.benchmarks.timing import PeakMemory
from s6la_mm.checkpoint.matching import shortened
from s6la_mm.checkpoint.reading import weights_only
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config
from s6la_mm.common.configs import entry, hooks_of, without_downloads
from s6la_mm.common.errors import UsageError
from s6la_mm.config_types import type_name
from s6la_mm.engine import ConfigCheckHook, build_runner, find_last_good, make_resumable
from s6la_mm.engine.config_checks import decayed_state, learning_rate_advice

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


class BatchBytes(Hook):
    """Notes how many bytes of tensors the batches have, which workers hand over in shared memory."""

    largest = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Looks at a batch."""
        self.largest = max(self.largest, bytes_of(data_batch))


def bytes_of(node: object) -> int:
    """Bytes of the tensors in a batch."""
    if isinstance(node, torch.Tensor):
        return node.numel() * node.element_size()
    if isinstance(node, BaseDataElement):
        node = list(node.values())
    elif hasattr(node, 'tensor'):  # boxes of mmdet
        return bytes_of(node.tensor)
    nodes = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return sum(map(bytes_of, nodes))


def check_shared_memory(cfg: Config, batch: int) -> None:
    """Compares what the workers of the training will hand over with the size of /dev/shm.

    Args:
        cfg (Config): The training's.
        batch (int): Bytes of a batch, of all processes that share the folder.

    Raises:
        UsageError: If it is too small.
    """
    loader = cfg.train_dataloader
    workers, folder = loader.get('num_workers', 0), '/dev/shm'
    if not workers or not osp.isdir(folder):
        return
    prefetched = workers * (loader.get('prefetch_factor') or 2)
    needed, there = batch * prefetched, shutil.disk_usage(folder).total
    if needed > there:
        raise UsageError(
            f'{prefetched} batches of {batch / 2**20:.1f} MiB that {workers} workers prepare need {needed / 2**20:.0f} '
            f"MiB, {folder} has {there / 2**20:.0f}: enlarge it (docker's --shm-size, --ipc=host), or lower "
            'train_dataloader.num_workers'
        )


def try_training(cfg: Config, batch_size: Hook) -> tuple[Runner, set[str], float]:
    """Trains some steps.

    Args:
        cfg (Config): From :func:`shorten`.
        batch_size (Hook): Sees the batches.

    Returns:
        tuple[Runner, set[str], float]: The runner, the parameters that got no gradient, and the peak memory in bytes.

    Raises:
        UsageError: If a loss is not finite.
    """
    with PeakMemory(get_device()) as peak:
        runner = build_runner(cfg)
        runner.register_hook(ConfigCheckHook())
        runner.register_hook(batch_size)
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
    """Predicts one batch of the validation set, and evaluates it.

    Args:
        cfg (Config): Config with a ``val_dataloader``.
        runner (Runner): With the model.

    Returns:
        tuple[float, int]: Seconds per image, and the number of images in the set.

    Raises:
        UsageError: If a metric cannot be computed, or is not there though a hook waits for it.
    """
    loader = Runner.build_dataloader(copy.deepcopy(cfg.val_dataloader), seed=0)
    batch = next(iter(loader))
    runner.model.eval()
    start = time.perf_counter()
    with torch.no_grad():
        results = runner.model.val_step(batch)
    seconds = (time.perf_counter() - start) / len(results)
    if cfg.get('val_evaluator'):
        evaluate(runner.val_evaluator, batch, results, cfg)
    return seconds, len(loader.dataset)


def evaluate(evaluator: Evaluator, batch: dict, results: list, cfg: Config) -> None:
    """Computes the metrics of one batch.

    Raises:
        UsageError: If that fails, or hooks wait for a metric that is not among them.
    """
    if hasattr(evaluator, 'dataset_prefixes'):  # a metric for each of several data sets: the batch is of the first
        return
    for metric in evaluator.metrics:
        if getattr(metric, 'outfile_prefix', None):
            metric.outfile_prefix = osp.join(cfg.work_dir, 'results')
        if getattr(metric, 'img_ids', ()) is None:  # one of COCO's, which takes all images of its file
            metric.img_ids = [sample.img_id for sample in results]
    try:
        with redirect_stdout(io.StringIO()):  # pycocotools prints
            evaluator.process(data_samples=results, data_batch=batch)
            found = [metric.evaluate(len(results)) for metric in evaluator.metrics]
    except Exception as error:  # whatever it is, the training would stop at its first evaluation
        metrics = ', '.join(type(metric).__name__ for metric in evaluator.metrics)
        reason = f'{type(error).__name__}: {error}'.partition('\n')[0]
        raise UsageError(f'val_evaluator ({metrics}) cannot evaluate the first batch: {reason}') from error
    wanted = []
    for hook in hooks_of(cfg):
        best = hook.get('save_best')
        wanted += best if isinstance(best, (list, tuple)) else [best]
        wanted += [hook.get('monitor')] * type_name(hook).endswith('EarlyStoppingHook')
    names = [name for metrics in found for name in metrics]
    lacking = [name for name in wanted if name not in (None, 'auto', *names)]
    if lacking and all(found):  # some give nothing where nothing was predicted
        raise UsageError(f'a hook waits for the metric {lacking[0]!r}, the evaluator gives {", ".join(names)}')


def main() -> None:
    """Tries and reports."""
    args = parse_args()
    with clear_errors():
        full = load_config(args.config, args.cfg_options, args.work_dir)
    with clear_errors(full), tempfile.TemporaryDirectory() as folder:
        cfg, batches = shorten(full, folder, args.random_weights), BatchBytes()
        with weights_only():  # of a load_from
            runner, unused, peak = try_training(cfg, batches)
        print(f'trained    {STEPS} iterations, losses {", ".join(f"{loss:.3f}" for loss in history(runner, "loss"))}')
        size = check_round_trip(cfg, runner)
        print(f'saved      {size / 2**20:.1f} MiB, resumed to the bit')
        if cfg.get('val_dataloader'):
            per_image, images = predict(cfg, runner)
            print(f'predicted  {per_image:.2f} s an image; {images} images: {_duration(per_image * images)}')
        report_cost(full, runner, peak, size, args.processes)
        on_this_node = min(args.processes, torch.cuda.device_count() or args.processes)
        check_shared_memory(full, batches.largest * on_this_node)
    advice = learning_rate_advice(full, args.processes)
    if advice:
        print(f'warning: {advice}, or say --processes')
    problems = []
    wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', {None: runner.optim_wrapper}).values()
    decayed = [name for wrapper in wrappers for name in decayed_state(runner.model, wrapper.optimizer)]
    if decayed:
        problems.append(
            f'weight decay pulls on {len(decayed)} parameters of the state: {shortened(decayed, 3)}. Add '
            "optim_wrapper = dict(constructor='S6LAOptimWrapperConstructor') to the config"
        )
    if unused:
        problems.append(
            f'{len(unused)} parameters got no gradient: {shortened(sorted(unused), 3)}. Several processes would '
            'stop at them: freeze or remove them, or set find_unused_parameters=True'
        )
    if problems:
        raise SystemExit('\n'.join(f'error: {problem}' for problem in problems))


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
    kept = ((full.get('default_hooks') or {}).get('checkpoint') or {}).get('max_keep_ckpts', -1)
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
