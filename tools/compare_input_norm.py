"""The experiment behind the default of ``input_norm``: loss and gradient norm with and without the norm.

Runs the RetinaNet of the quickstart from scratch and from a plain network that was trained first, in float32 and under
bfloat16 autocast, each with ``input_norm='rms'`` and None, and prints a Markdown table of means over windows of
iterations. Everything but the norm is the same: seed, data order, augmentation, schedule.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MessageHub

from s6la_mm.utils.cli import build_runner, load_config

CONFIG = Path(__file__).parents[1] / 'configs' / 'quickstart' / 'retinanet_s6la-r18_shapes.py'
WRAPPERS = dict(float32='OptimWrapper', bfloat16='CPUAmpOptimWrapper')


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_input_norm'))
    parser.add_argument('--iterations', type=int, default=300, help='iterations of each run')
    parser.add_argument('--windows', type=int, default=3, help='columns of the table')
    return parser.parse_args()


def train(cfg: Config, work_dir: Path, iterations: int) -> list[dict]:
    """Trains without validation, or takes the finished run that is there.

    Returns:
        list[dict]: What the logger wrote, one entry per interval.
    """
    scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not (work_dir / f'iter_{iterations}.pth').exists() or not scalars:
        cfg = copy.deepcopy(cfg)
        cfg.work_dir = str(work_dir)
        cfg.experiment_name = work_dir.name  # each run gets message hubs and visualizers of its own
        cfg.train_cfg.update(max_iters=iterations, val_interval=iterations + 1)
        cfg.default_hooks.checkpoint.interval = iterations
        cfg.default_hooks.logger.interval = cfg.log_processor.window_size = 10
        build_runner(cfg).train()
        MessageHub._instance_dict.clear()
        scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in scalars[-1].read_text().splitlines()]


def main() -> None:
    """Runs what is missing and prints the table."""
    args = parse_args()
    base = load_config(str(CONFIG))
    plain = copy.deepcopy(base)
    plain.model.backbone.type = 'mmdet.ResNet'
    train(plain, args.work_dir / 'plain', args.iterations)
    checkpoint = args.work_dir / 'plain' / f'iter_{args.iterations}.pth'

    size = args.iterations // 10 // args.windows
    spans = [f'{i * size * 10 + 1}–{(i + 1) * size * 10}' for i in range(args.windows)]
    print('| start | precision | input_norm | figure | ' + ' | '.join(spans) + ' | largest |')
    print('|---|---|---|---|' + '---:|' * (args.windows + 1))
    for start in ('scratch', 'plain network'):
        for precision, wrapper in WRAPPERS.items():
            for input_norm in ('rms', None):
                cfg = copy.deepcopy(base)
                cfg.model.backbone.input_norm = input_norm
                cfg.optim_wrapper.type = wrapper
                cfg.load_from = str(checkpoint) if start != 'scratch' else None
                name = f'{start.split()[0]}-{precision}-{input_norm}'
                log = train(cfg, args.work_dir / name, args.iterations)
                for figure in ('loss', 'grad_norm'):
                    values = [entry[figure] for entry in log]
                    means = [statistics.mean(values[i * size : (i + 1) * size]) for i in range(args.windows)]
                    cells = ' | '.join(f'{value:.3g}' for value in (*means, max(values)))
                    print(f'| {start} | {precision} | {input_norm} | {figure} | {cells} |', flush=True)


if __name__ == '__main__':
    main()
