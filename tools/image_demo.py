"""Run a trained model on images: pictures with boxes, masks or classes, and a JSON file for each image."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import mmcv
import mmengine
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

import s6la_mm  # noqa: F401  (allow-lists what checkpoints hold, also for configs that don't import it)
from s6la_mm.common.cli import add_cfg_options, clear_errors, find_images, load_config, require_file
from s6la_mm.common.configs import package_of
from s6la_mm.common.failures import Failures
from s6la_mm.common.fonts import fallback_families, make_legible
from s6la_mm.common.inference import build_visualizer, init_model, loader_of, predictor, read_image

LEGEND_SIZE = 9  # points of the letters, in pictures of 100 pixels to the inch
# The picture (height, width, RGB; uint8) of a prediction, what goes into its JSON, a label map or None.
Drawn = tuple[np.ndarray, dict, 'np.ndarray | None']


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('inputs', nargs='+', help='images, folders, or quoted glob patterns')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out-dir', default='outputs', help='gets vis/ (pictures) and preds/ (JSON) (default: outputs)'
    )
    parser.add_argument('--device', help='cpu, cuda:0 … (default: an accelerator if there is one)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='detection: lowest score drawn; the JSON holds all (0.3)'
    )
    parser.add_argument(
        '--palette', default='none', help="detection: colours, e.g. coco, voc, citys, random (the config's)"
    )
    parser.add_argument('--opacity', type=float, default=0.5, help='segmentation: of the colours, 0 to 1 (0.5)')
    add_cfg_options(parser)
    args = parser.parse_args()
    if not 0 <= args.opacity <= 1:
        parser.error(f'--opacity {args.opacity} must be from 0 to 1')
    return args


def draw_boxes(visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, args: argparse.Namespace) -> Drawn:
    """A detector's: all boxes (x1, y1, x2, y2 in pixels), scores, labels and RLE masks go into the JSON."""
    from mmdet.apis import DetInferencer

    found = DetInferencer.pred2dict(None, sample)  # which asks the inferencer only where to write
    found['classes'] = [visualizer.dataset_meta['classes'][label] for label in found['labels']]
    if args.palette != 'none':
        visualizer.dataset_meta['palette'] = args.palette
    visualizer.add_datasample('', image, sample, draw_gt=False, pred_score_thr=args.score_thr)
    return visualizer.get_image(), found, None


def draw_classes_of_pixels(
    visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, args: argparse.Namespace
) -> Drawn:
    """A segmentor's: a legend beside the coloured picture, the share of each class in the JSON, a label map beside."""
    label_map = sample.pred_sem_seg.data[0].cpu().numpy()
    visualizer.alpha = args.opacity
    visualizer.add_datasample('', image, sample, draw_gt=False, with_labels=False)
    classes, palette = (visualizer.dataset_meta[key] for key in ('classes', 'palette'))
    labels, pixels = np.unique(label_map, return_counts=True)
    shares = {int(k): int(n) / label_map.size for k, n in zip(labels, pixels)}
    ranked = sorted(shares, key=shares.get, reverse=True)
    picture = with_legend(visualizer.get_image(), [(palette[k], f'{classes[k]} {shares[k]:.1%}') for k in ranked])
    return picture, {'share': {classes[k]: shares[k] for k in ranked}}, label_map


def draw_class(visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, args: argparse.Namespace) -> Drawn:
    """A classifier's: the five best classes and their scores go into the JSON."""
    classes = visualizer.dataset_meta.get('classes')
    scores = sample.pred_score.cpu().numpy()
    best = [dict(label=int(k), score=float(scores[k])) for k in np.argsort(-scores)[:5]]
    for entry in best if classes else ():
        entry['class'] = classes[entry['label']]
    return visualizer.visualize_cls(image, sample, classes=classes), {'best': best}, None


def with_legend(picture: np.ndarray, entries: list[tuple[Sequence[int], str]]) -> np.ndarray:
    """Put a legend to the right of a picture.

    Args:
        picture (np.ndarray): (height, width, 3), RGB, uint8.
        entries (list[tuple[Sequence[int], str]]): Colour (RGB, 0 to 255) and text of each line, from top to
            bottom; what does not fit goes into further columns.

    Returns:
        np.ndarray: The wider picture, (height, width + legend, 3); lower pictures than one line (22 pixels) are
        padded to it.
    """
    line = 22
    height = max(picture.shape[0], line)
    rows = height // line
    columns = [np.pad(picture, ((0, height - picture.shape[0]), (0, 0), (0, 0)))]
    for start in range(0, len(entries), rows):
        chosen = entries[start : start + rows]
        texts = [text for _, text in chosen]
        column = np.full((height, 34 + max(map(text_width, texts)), 3), 255, np.uint8)
        for row, (colour, _) in enumerate(chosen):
            column[row * line + 4 : row * line + 18, 4:20] = colour
        drawn = make_legible(Visualizer(image=column))
        places = np.array([(26, row * line + line // 2) for row in range(len(texts))])
        drawn.draw_texts(texts, places, LEGEND_SIZE, 'k', vertical_alignments='center_baseline')
        columns.append(drawn.get_image())
    return np.concatenate(columns, axis=1)


def text_width(text: str) -> int:
    """Pixels that a text of a legend takes."""
    font = FontProperties(family=['sans-serif', *fallback_families([text])], size=LEGEND_SIZE * 100 / 72)
    return math.ceil(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def write_results(
    images: list[str],
    draw: Callable[[str, np.ndarray], Drawn],
    out_dir: Path,
    load: Callable[[str], np.ndarray] | None = None,
) -> Failures:
    """Write ``out_dir/vis/*.png`` and ``out_dir/preds/*.json``.

    Args:
        images (list[str]): Paths.
        draw (Callable[[str, np.ndarray], Drawn]): Predicts and draws, from an image's path and its pixels.
        out_dir (Path): Made where it is missing. Images of one name from different folders get numbers.
        load (Callable, optional): What reads files that are none of mmcv's. Defaults to None.

    Returns:
        Failures: Of images that cannot be read, or that the model fails on.
    """
    used: set[str] = set()
    failures = Failures()
    for path in images:
        with failures.of(path):
            picture, prediction, label_map = draw(path, read_image(path, load))
            name = stem = Path(path).stem
            while name in used:
                name = f'{stem}_{len(used)}'
            used.add(name)
            mmcv.imwrite(picture[..., ::-1], str(out_dir / 'vis' / f'{name}.png'))
            mmengine.dump({'image': path, **prediction}, str(out_dir / 'preds' / f'{name}.json'))
            if label_map is not None:
                dtype = np.uint8 if label_map.max() < 256 else np.uint16
                mmcv.imwrite(label_map.astype(dtype), str(out_dir / 'preds' / f'{name}.png'))
    return failures


def main() -> None:
    """Predict as the command line says."""
    args = parse_args()
    out_dir = Path(args.out_dir)
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
        require_file(args.checkpoint, 'checkpoint')
        images = find_images(args.inputs)
    with clear_errors(cfg):
        model = init_model(cfg, args.checkpoint, args.device)
        predict = predictor(cfg, model)
        visualizer = build_visualizer(cfg, model.dataset_meta)
        describe = dict(mmdet=draw_boxes, mmseg=draw_classes_of_pixels, mmpretrain=draw_class)[package_of(cfg)]
        failures = write_results(
            images, lambda path, image: describe(visualizer, image, predict(path), args), out_dir, loader_of(cfg)
        )
    print(f'{failures.succeeded} image(s): pictures in {out_dir / "vis"}, predictions in {out_dir / "preds"}')
    failures.end()


if __name__ == '__main__':
    main()
