"""Make the page of pictures of runs of any OpenMMLab scope: metrics, curves, ground truth beside prediction."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # no display needed; before pyplot

import numpy as np
import torch
from matplotlib import pyplot as plt
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.registry import DATASETS
from mmengine.runner import find_latest_checkpoint
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

import s6la_mm  # noqa: F401  (allow-lists what checkpoints hold, also for configs that don't import it)
from s6la_mm.analysis.logs import read_entries
from s6la_mm.analysis.metrics import best_of, is_lower_better, main_metrics, metrics_in
from s6la_mm.analysis.page import write_page
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config, require_file
from s6la_mm.common.configs import datasets_of, package_of
from s6la_mm.common.errors import UsageError
from s6la_mm.common.failures import Failures
from s6la_mm.common.fonts import make_figure_legible
from s6la_mm.common.inference import build_visualizer, init_model, read_image

DRAWN_SIDE = 480
CURVES = 12  # at most; a log may have a metric for each class and difficulty


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dirs', nargs='+', metavar='work_dir', help='work dir of a training; each gets its page')
    parser.add_argument('--checkpoint', help='checkpoint to draw (default: the last one of the work dir)')
    parser.add_argument('--num-images', type=int, default=12, help='validation images to draw (12)')
    parser.add_argument('--score-thr', type=float, default=0.5, help='detection: lowest score drawn (0.5)')
    parser.add_argument(
        '--out-dir', help='folder of the page; of several work dirs, with a folder for each (default: WORK_DIR/report)'
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.num_images < 0:
        parser.error(f'--num-images {args.num_images} must not be negative')
    if args.checkpoint and len(args.work_dirs) > 1:
        parser.error('--checkpoint is of one work dir, and there are several')
    names = [Path(work_dir).resolve().name for work_dir in args.work_dirs]
    if args.out_dir and len(set(names)) < len(names):
        parser.error(f'--out-dir: work dirs of the same name would share a folder: {", ".join(names)}')
    return args


def find_config(work_dir: Path) -> Path:
    """The config that the last run of a work dir wrote.

    Raises:
        FileNotFoundError: If there is none.
    """
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise FileNotFoundError(f'{work_dir} has no config (*.py): it is not the work dir of a training')
    return configs[-1]


def find_checkpoint(work_dir: Path) -> str:
    """The newest checkpoint of a work dir, also where the folder was moved after the training.

    Raises:
        FileNotFoundError: If there is none.
    """
    latest = find_latest_checkpoint(str(work_dir))
    for path in (latest, work_dir / Path(latest).name) if latest else ():
        if Path(path).is_file():
            return str(path)
    raise FileNotFoundError(f'{work_dir} has no checkpoint that its last_checkpoint names; give --checkpoint')


def read_scalars(work_dir: Path) -> tuple[list[dict], list[dict]]:
    """Joins what the runs of a work dir logged; a resumed run goes on where the one before it was left.

    Returns:
        tuple[list[dict], list[dict]]: Training entries and validation entries, by rising ``step``, which counts
        iterations in both.

    Raises:
        FileNotFoundError: If no run logged a loss.
    """
    train: list[dict] = []
    val: list[dict] = []
    for entries in read_entries(work_dir):
        first = next((entry['step'] for entry in entries if 'loss' in entry), None)
        if first is None:
            continue  # a test, or a training that ended before it logged
        train = [entry for entry in train if entry['step'] < first]
        val = [entry for entry in val if entry['step'] < first]
        step = train[-1]['step'] if train else 0
        for entry in entries:
            if 'loss' in entry:
                train.append(entry)
                step = entry['step']
            elif metrics_in(entry):
                # mmengine's own step is an iteration, an epoch or always 0, as the config goes.
                val.append({**metrics_in(entry), 'step': step})
    if not train:
        raise FileNotFoundError(
            f'{work_dir}/*/vis_data/scalars.json: no logged loss. The config needs LocalVisBackend '
            'in visualizer.vis_backends, and the training at least one logging interval'
        )
    return train, val


def draw_curves(train: list[dict], val: list[dict], cfg: Config, out_dir: Path) -> list[str]:
    """Draw the losses and, where the run was validated, its metrics.

    Args:
        train (list[dict]): Training entries of :func:`read_scalars`.
        val (list[dict]): Validation entries.
        cfg (Config): Which may say of which metrics less is better.
        out_dir (Path): Gets ``loss.png`` and ``metrics.png``.

    Returns:
        list[str]: The names of the files.
    """
    losses = sorted({key for entry in train for key in entry if 'loss' in key})
    metrics = main_metrics(keys_of(val))[:CURVES]
    # Percent and fractions have axes of their own.
    shares = [key for key in metrics if all(abs(entry.get(key, 0)) <= 1 for entry in val)]
    groups = [group for group in (shares, [key for key in metrics if key not in shares]) if group]
    names = []
    for name, entries, panels in (('loss.png', train, [losses]), ('metrics.png', val, groups)):
        if not panels:
            continue
        figure, rows = plt.subplots(
            len(panels), figsize=(8, 4 * len(panels)), layout='constrained', squeeze=False, sharex=True
        )
        for axes, keys in zip(rows[:, 0], panels):
            for key in keys:
                points = [(entry['step'], entry[key]) for entry in entries if key in entry]
                note = ' (less is better)' if entries is val and is_lower_better(key, cfg) else ''
                axes.plot(*zip(*points), label=key + note, marker='.' if len(points) < 50 else None)
            if all(entry.get(key, 0) >= 0 for entry in entries for key in keys):
                axes.set_ylim(0, None)
            axes.grid(alpha=0.3)
            axes.legend()
        axes.set_xlabel('iteration')
        make_figure_legible(figure)
        figure.savefig(out_dir / name, dpi=120)
        plt.close(figure)
        names.append(name)
    return names


def keys_of(val: list[dict]) -> list[str]:
    """The metrics of all evaluations, in the order in which they came."""
    return list(dict.fromkeys(key for entry in val for key in entry if key != 'step'))


def enlarge(image: np.ndarray, sample: DetDataSample) -> np.ndarray:
    """Enlarge a small image and what is known about it, so that labels leave something to see.

    Args:
        image (np.ndarray): (height, width, 3), uint8.
        sample (DetDataSample): Its ground truth and prediction in the image's pixels; changed in place.

    Returns:
        np.ndarray: The image, its shorter side at least about ``DRAWN_SIDE`` pixels long.
    """
    factor = max(1, round(DRAWN_SIDE / min(image.shape[:2])))
    image = image.repeat(factor, 0).repeat(factor, 1)
    for instances in (sample.get('gt_instances'), sample.get('pred_instances')):
        if instances is None:
            continue
        instances.bboxes = get_box_tensor(instances.bboxes) * factor
        masks = instances.get('masks')
        if isinstance(masks, torch.Tensor):
            instances.masks = masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        elif masks is not None:
            instances.masks = masks.resize(image.shape[:2])
    return image


def draw_predictions(
    cfg: Config, checkpoint: str, number: int, score_thr: float, out_dir: Path, failures: Failures
) -> dict:
    """Predict on validation images, evenly spread over the set, and draw each beside its ground truth.

    Args:
        cfg (Config): The run's config.
        checkpoint (str): Weights.
        number (int): Images to draw, at most.
        score_thr (float): Lowest score drawn.
        out_dir (Path): Gets ``images/*.png``.
        failures (Failures): Gets the images that cannot be read.

    Returns:
        dict: The part of the page that shows them.
    """
    scope = package_of(cfg)
    model = init_model(cfg, checkpoint)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    meta = next(datasets_of(dataset)).metainfo
    visualizer = build_visualizer(cfg, meta)
    collate = default_collate if scope == 'mmpretrain' else pseudo_collate
    names = []
    number = min(number, len(dataset))
    for index in (len(dataset) * i // number for i in range(number)):
        with failures.of(dataset.get_data_info(index).get('img_path', f'image {index}')):
            batch = collate([dataset[index]])
            with torch.no_grad():
                sample = model.val_step(batch)[0]
            name, image = f'images/{index:03d}.png', image_of(sample, batch, model)
            draw_sample(visualizer, scope, image, sample, score_thr, out_dir / name)
            names.append(name)
    if scope == 'mmpretrain':
        return dict(head='Ground truth and prediction', pictures=names, in_grid=True)
    section = dict(head='Ground truth (left) and prediction (right)', pictures=names, in_grid=True)
    if scope == 'mmseg':
        return dict(section, legend=list(zip(meta['classes'], map(tuple, meta['palette']))))
    return dict(section, text=f'Score at least {score_thr:g}')


def image_of(sample: BaseDataElement, batch: dict, model: torch.nn.Module) -> np.ndarray:
    """The image of a prediction, (height, width, 3), RGB; of the network's input where it has no file (CIFAR)."""
    if sample.get('img_path'):
        return read_image(sample.img_path)
    pixels = batch['inputs'][0].permute(1, 2, 0).numpy().astype(np.uint8)
    return np.ascontiguousarray(pixels[..., ::-1] if model.data_preprocessor.to_rgb else pixels)


def draw_sample(
    visualizer: Visualizer, scope: str, image: np.ndarray, sample: BaseDataElement, score_thr: float, path: Path
) -> None:
    """Write the picture of a prediction."""
    if scope == 'mmpretrain':
        small = min(image.shape[:2]) < DRAWN_SIDE
        visualizer.visualize_cls(image, sample, resize=DRAWN_SIDE if small else None, out_file=str(path))
        return
    options: dict = dict(with_labels=False) if scope == 'mmseg' else dict(pred_score_thr=score_thr)
    if scope == 'mmdet' and 'pred_panoptic_seg' not in sample:
        image = enlarge(image, sample)
    visualizer.add_datasample('', image, sample, out_file=str(path), **options)


def metrics_section(val: list[dict], cfg: Config) -> dict:
    """The last and the best value of each metric."""
    keys = keys_of(val)
    if not keys:
        return dict(head='Validation', text='This run was not validated, or found nothing.')
    rows = [('metric', f'last (iteration {val[-1]["step"]})', 'best')]
    for key in keys:
        values = [entry[key] for entry in val if key in entry]
        lower = is_lower_better(key, cfg)
        rows.append((key, text_of(val[-1].get(key)), text_of(best_of(values, lower)) + (' (least)' if lower else '')))
    return dict(head='Validation', table=rows)


def text_of(value: float | None) -> str:
    """A value with three digits; COCO's -1 says that there are no objects of this size."""
    return '–' if value is None or value == -1 else f'{value:.3f}'


def report(work_dir: Path, out_dir: Path, args: argparse.Namespace, failures: Failures) -> None:
    """Write the page of a run and print its path."""
    with clear_errors():
        config = find_config(work_dir)
        cfg = load_config(str(config), args.cfg_options)
        if package_of(cfg) not in ('mmdet', 'mmseg', 'mmpretrain'):
            raise UsageError(f'{config} is for {package_of(cfg)}: a page is made for mmdet, mmseg and mmpretrain')
        train, val = read_scalars(work_dir)
        checkpoint = args.checkpoint or find_checkpoint(work_dir)
        require_file(checkpoint, 'checkpoint')
    out_dir.mkdir(parents=True, exist_ok=True)
    curves = dict(head='Curves', pictures=draw_curves(train, val, cfg, out_dir))
    drawn, known = main_metrics(keys_of(val)), keys_of(val)
    if len(drawn) > CURVES:
        curves['text'] = f'The first {CURVES} of {len(drawn)} metrics; the table has all.'
    with clear_errors(cfg):
        predictions = draw_predictions(cfg, checkpoint, args.num_images, args.score_thr, out_dir, failures)
    page = out_dir / 'index.html'
    sections = [metrics_section(val, cfg), curves, predictions]
    write_page(str(page), config.stem, f'Checkpoint: {checkpoint}', sections)
    for key in known:
        if key in drawn or key.endswith(('mAP_50', 'mAP_75')):
            print(f'{key}: {text_of(val[-1].get(key))}')
    print(f'Page of pictures: {page}')


def main() -> None:
    """Write the pages."""
    args = parse_args()
    failures = Failures()
    for name in args.work_dirs:
        work_dir = Path(name)
        out_dir = work_dir / 'report'
        if args.out_dir:
            out_dir = Path(args.out_dir) / (work_dir.resolve().name if len(args.work_dirs) > 1 else '')
        with failures.of(name):
            report(work_dir, out_dir, args, failures)
    failures.end()


if __name__ == '__main__':
    main()
