"""The experiment behind the default of ``input_norm``: loss and gradient norm with and without the norm.

Runs the RetinaNet of the quickstart from scratch and from a plain network that was trained first, in float32 and under
bfloat16 autocast, each with ``input_norm='rms'`` and None, and prints a Markdown table of means over windows of 50
iterations, and the largest state that the float32 networks write on 20 validation images. Everything but the norm is
the same: seed, data order, augmentation, schedule. The images are 96 × 96: bfloat16 convolutions are slow on a CPU
without instructions for them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from mmdet.apis import inference_detector, init_detector
from torch import Tensor, nn

import s6la_mm  # noqa: F401  (registers the backbone, allow-lists what checkpoints hold)

TRAIN = Path(__file__).with_name('train.py')
CONFIG = TRAIN.parents[1] / 'configs' / 'quickstart' / 'retinanet_s6la-r18_shapes.py'
INTERVAL, WINDOW = 10, 50
WRAPPERS = dict(float32='OptimWrapper', bfloat16='CPUAmpOptimWrapper')


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_input_norm'))
    for precision, default in (('float32', 300), ('bfloat16', 100)):
        parser.add_argument(f'--{precision}', type=int, default=default, help=f'iterations of each {precision} run')
    args = parser.parse_args()
    if min(args.float32, args.bfloat16) < WINDOW:
        parser.error(f'a run needs at least {WINDOW} iterations')
    return args


def train(work_dir: Path, iterations: int, **options: object) -> list[dict]:
    """Trains in a process of its own, or takes the finished run that is there.

    Returns:
        list[dict]: What the logger wrote, one entry per interval.

    Raises:
        SystemExit: If the training fails.
    """
    if not (work_dir / f'iter_{iterations}.pth').exists():
        options |= {
            'train_dataloader.dataset.generator.image_size': 96,
            'val_dataloader.dataset.generator.image_size': 96,
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': iterations + 1,
            'default_hooks.checkpoint.interval': iterations,
            'default_hooks.logger.interval': INTERVAL,
            'log_processor.window_size': INTERVAL,
        }
        command = [sys.executable, str(TRAIN), str(CONFIG), '--work-dir', str(work_dir), '--cfg-options']
        command += [f'{key}={value}' for key, value in options.items()]
        environment = os.environ | {'S6LA_SHAPES_ROOT': str(work_dir.parent / 'shapes')}
        if subprocess.run(command, stdout=subprocess.DEVNULL, env=environment).returncode:
            raise SystemExit(f'error: the run in {work_dir} failed; its log is there')
    scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    entries = [json.loads(line) for line in scalars.read_text().splitlines()]
    return [entry for entry in entries if 'loss' in entry]  # not the validation at the end


def largest_state(work_dir: Path, iterations: int, images: list[str]) -> dict[str, float]:
    """The largest |h| that each stage of a trained network writes on some images."""
    model = init_detector(str(work_dir / CONFIG.name), str(work_dir / f'iter_{iterations}.pth'), device='cpu')
    largest = {}
    for stage, cell in model.backbone.cells.items():

        def keep_largest(cell: nn.Module, inputs: tuple, h: Tensor, stage: str = stage) -> None:
            largest[stage] = max(largest.get(stage, 0.0), h.abs().max().item())

        cell.register_forward_hook(keep_largest)
    for image in images:
        inference_detector(model, image)
    return largest


def main() -> None:
    """Runs what is missing and prints the table."""
    args = parse_args()
    iterations = dict(float32=args.float32, bfloat16=args.bfloat16)
    train(args.work_dir / 'plain', args.float32, **{'model.backbone.type': 'mmdet.ResNet'})
    checkpoint = args.work_dir / 'plain' / f'iter_{args.float32}.pth'

    starts = range(0, max(iterations.values()) // WINDOW * WINDOW, WINDOW)
    columns = [f'{start + 1}–{start + WINDOW}' for start in starts] + ['largest']
    print('| start | precision | input_norm | figure | ' + ' | '.join(columns) + ' |')
    print('|---|---|---|---|' + '---:|' * len(columns))
    for start in ('scratch', 'plain network'):
        for precision, wrapper in WRAPPERS.items():
            for input_norm in ('rms', None):
                options = {
                    'model.backbone.input_norm': input_norm,
                    'optim_wrapper.type': wrapper,
                    'load_from': checkpoint if start != 'scratch' else None,
                }
                name = f'{start.split()[0]}-{precision}-{input_norm}'
                log = train(args.work_dir / name, iterations[precision], **options)
                for figure in ('loss', 'grad_norm'):
                    values = [entry[figure] for entry in log]
                    windows = [values[i // INTERVAL : (i + WINDOW) // INTERVAL] for i in starts]
                    means = [f'{statistics.mean(w):.3g}' if len(w) == WINDOW // INTERVAL else '' for w in windows]
                    cells = ' | '.join([*means, f'{max(values):.3g}'])
                    print(f'| {start} | {precision} | {input_norm} | {figure} | {cells} |', flush=True)

    images = [str(path) for path in sorted(args.work_dir.glob('shapes/val/*.png'))[:20]]
    print('\n| start | input_norm | layer1 | layer2 | layer3 | layer4 |\n|---|---|---:|---:|---:|---:|')
    for start in ('scratch', 'plain network'):
        for input_norm in ('rms', None):
            name = f'{start.split()[0]}-float32-{input_norm}'
            largest = largest_state(args.work_dir / name, args.float32, images)
            cells = ' | '.join(f'{value:.3g}' for value in largest.values())
            print(f'| {start} | {input_norm} | {cells} |')


if __name__ == '__main__':
    main()
