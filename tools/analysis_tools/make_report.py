"""Make the page of pictures of a detection or segmentation run: metrics, curves, ground truth beside prediction."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # no display needed; before pyplot

import mmcv
import numpy as np
import torch
from matplotlib import pyplot as plt
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from mmengine.runner import find_latest_checkpoint

import s6la_mm  # noqa: F401  (allow-lists what checkpoints hold, also for configs that don't import it)
from s6la_mm.analysis.logs import read_entries
from s6la_mm.analysis.page import write_page
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config, require_file
from s6la_mm.common.configs import package_of
from s6la_mm.common.errors import UsageError
from s6la_mm.common.inference import build_visualizer, init_model

DRAWN_SIDE = 480
SEGMENTATION_METRICS = ('mIoU', 'mAcc', 'aAcc')


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='work dir of the training')
    parser.add_argument('--checkpoint', help='checkpoint to draw (default: the last one of the work dir)')
    parser.add_argument('--num-images', type=int, default=12, help='validation images to draw (12)')
    parser.add_argument('--score-thr', type=float, default=0.5, help='detection: lowest score drawn (0.5)')
    parser.add_argument('--out-dir', help='folder of the page (default: WORK_DIR/report)')
    add_cfg_options(parser)
    return parser.parse_args()


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
            elif any('mAP' in key or key in SEGMENTATION_METRICS for key in entry):
                # mmengine's own step is an iteration, an epoch or always 0, as the config goes.
                val.append({**entry, 'step': step})
    if not train:
        raise FileNotFoundError(
            f'{work_dir}/*/vis_data/scalars.json: no logged loss. The config needs LocalVisBackend '
            'in visualizer.vis_backends, and the training at least one logging interval'
        )
    return train, val


def draw_curves(train: list[dict], val: list[dict], out_dir: Path) -> list[str]:
    """Draw the losses and, where the run was validated, box and mask mAP or mIoU and accuracies.

    Args:
        train (list[dict]): Training entries of :func:`read_scalars`.
        val (list[dict]): Validation entries.
        out_dir (Path): Gets ``loss.png`` and ``metrics.png``.

    Returns:
        list[str]: The names of the files.
    """
    losses = sorted(key for key in train[-1] if 'loss' in key)
    metrics = sorted(key for key in val[-1] if key.endswith(('_mAP', *SEGMENTATION_METRICS))) if val else []
    names = []
    for name, entries, keys in (('loss.png', train, losses), ('metrics.png', val, metrics)):
        if not keys:
            continue
        figure, axes = plt.subplots(figsize=(8, 4), layout='constrained')
        for key in keys:
            points = [(entry['step'], entry[key]) for entry in entries if key in entry]
            axes.plot(*zip(*points), label=key, marker='.' if len(points) < 50 else None)
        axes.set(xlabel='iteration', ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(out_dir / name, dpi=120)
        plt.close(figure)
        names.append(name)
    return names


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


def draw_predictions(cfg: Config, checkpoint: str, number: int, score_thr: float, out_dir: Path) -> dict:
    """Predict on validation images, evenly spread over the set, and draw each beside its ground truth.

    Args:
        cfg (Config): The run's config.
        checkpoint (str): Weights.
        number (int): Images to draw, at most.
        score_thr (float): Lowest score drawn.
        out_dir (Path): Gets ``images/*.png``.

    Returns:
        dict: The part of the page that shows them.
    """
    segments = package_of(cfg) == 'mmseg'
    model = init_model(cfg, checkpoint)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    visualizer = build_visualizer(cfg, dataset.metainfo)
    names = []
    number = min(number, len(dataset))
    for index in (len(dataset) * i // number for i in range(number)):
        with torch.no_grad():
            sample = model.val_step(pseudo_collate([dataset[index]]))[0]
        names.append(f'images/{index:03d}.png')
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        visualizer.add_datasample(
            f'{index}',
            image if segments else enlarge(image, sample),
            sample,
            out_file=str(out_dir / names[-1]),
            **(dict(with_labels=False) if segments else dict(pred_score_thr=score_thr)),
        )
    section = dict(head='Ground truth (left) and prediction (right)', pictures=names, in_grid=True)
    if segments:
        colours = map(tuple, dataset.metainfo['palette'])
        return dict(section, legend=list(zip(dataset.metainfo['classes'], colours)))
    return dict(section, text=f'Score at least {score_thr:g}')


def metrics_section(val: list[dict]) -> dict:
    """The last and the best value of each metric."""
    keys = [key for key in val[-1] if '/' in key or key in SEGMENTATION_METRICS] if val else []
    if not keys:
        return dict(head='Validation', text='This run was not validated, or found nothing.')
    rows = [('metric', f'last (iteration {val[-1]["step"]})', 'best')]
    for key in keys:
        values = (val[-1][key], max(entry[key] for entry in val if key in entry))
        # COCO's -1: there are no objects of this size.
        rows.append((key, *(f'{value:.3f}' if value >= 0 else '–' for value in values)))
    return dict(head='Validation', table=rows)


def main() -> None:
    """Write the page and print its path."""
    args = parse_args()
    work_dir = Path(args.work_dir)
    out_dir = Path(args.out_dir) if args.out_dir else work_dir / 'report'
    with clear_errors():
        config = find_config(work_dir)
        cfg = load_config(str(config), args.cfg_options)
        if package_of(cfg) not in ('mmdet', 'mmseg'):
            raise UsageError(f'{config} is for {package_of(cfg)}: a page is made for mmdet and mmseg')
        train, val = read_scalars(work_dir)
        checkpoint = args.checkpoint or find_checkpoint(work_dir)
        require_file(checkpoint, 'checkpoint')
    out_dir.mkdir(parents=True, exist_ok=True)
    curves = dict(head='Curves', pictures=draw_curves(train, val, out_dir))
    with clear_errors(cfg):
        predictions = draw_predictions(cfg, checkpoint, args.num_images, args.score_thr, out_dir)
    page = out_dir / 'index.html'
    write_page(str(page), config.stem, f'Checkpoint: {checkpoint}', [metrics_section(val), curves, predictions])
    for key, value in val[-1].items() if val else ():
        if key.endswith(('mAP', 'mAP_50', 'mAP_75', *SEGMENTATION_METRICS)):
            print(f'{key}: {value:.3f}')
    print(f'Page of pictures: {page}')


if __name__ == '__main__':
    main()
