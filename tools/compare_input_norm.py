"""The experiment behind the default of ``input_norm``: loss and gradient norm with and without the norm.

Runs the RetinaNet of the quickstart from scratch and from a plain network that was trained first, in float32 and under
bfloat16 autocast, each with ``input_norm='rms'`` and None, and prints a Markdown table of means over windows of
iterations. Everything but the norm is the same: seed, data order, augmentation, schedule.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).with_name('train.py')
CONFIG = TRAIN.parents[1] / 'configs' / 'quickstart' / 'retinanet_s6la-r18_shapes.py'
WRAPPERS = dict(float32='OptimWrapper', bfloat16='CPUAmpOptimWrapper')


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_input_norm'))
    parser.add_argument('--iterations', type=int, default=300, help='iterations of each run')
    parser.add_argument('--windows', type=int, default=3, help='columns of the table')
    return parser.parse_args()


def train(work_dir: Path, iterations: int, **options: object) -> list[dict]:
    """Trains without validation in a process of its own, or takes the finished run that is there.

    Returns:
        list[dict]: What the logger wrote, one entry per interval.

    Raises:
        SystemExit: If the training fails.
    """
    if not (work_dir / f'iter_{iterations}.pth').exists():
        options |= {
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': iterations + 1,
            'default_hooks.checkpoint.interval': iterations,
            'default_hooks.logger.interval': 10,
            'log_processor.window_size': 10,
        }
        command = [sys.executable, str(TRAIN), str(CONFIG), '--work-dir', str(work_dir), '--cfg-options']
        command += [f'{key}={value}' for key, value in options.items()]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f'error: the run in {work_dir} failed; its log is there')
    scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    return [json.loads(line) for line in scalars.read_text().splitlines()]


def main() -> None:
    """Runs what is missing and prints the table."""
    args = parse_args()
    train(args.work_dir / 'plain', args.iterations, **{'model.backbone.type': 'mmdet.ResNet'})
    checkpoint = args.work_dir / 'plain' / f'iter_{args.iterations}.pth'

    size = args.iterations // 10 // args.windows
    spans = [f'{i * size * 10 + 1}–{(i + 1) * size * 10}' for i in range(args.windows)]
    print('| start | precision | input_norm | figure | ' + ' | '.join(spans) + ' | largest |')
    print('|---|---|---|---|' + '---:|' * (args.windows + 1))
    for start in ('scratch', 'plain network'):
        for precision, wrapper in WRAPPERS.items():
            for input_norm in ('rms', None):
                options = {
                    'model.backbone.input_norm': input_norm,
                    'optim_wrapper.type': wrapper,
                    'load_from': checkpoint if start != 'scratch' else None,
                }
                name = f'{start.split()[0]}-{precision}-{input_norm}'
                log = train(args.work_dir / name, args.iterations, **options)
                for figure in ('loss', 'grad_norm'):
                    values = [entry[figure] for entry in log]
                    means = [statistics.mean(values[i * size : (i + 1) * size]) for i in range(args.windows)]
                    cells = ' | '.join(f'{value:.3g}' for value in (*means, max(values)))
                    print(f'| {start} | {precision} | {input_norm} | {figure} | {cells} |', flush=True)


if __name__ == '__main__':
    main()
