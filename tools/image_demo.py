"""Run a trained model on images: pictures with boxes, masks or classes, and a JSON file for each image."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import mmcv
import mmengine
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

import s6la_mm  # noqa: F401  (allow-lists what checkpoints hold, also for configs that don't import it)
from s6la_mm.checkpoint.reading import weights_only
from s6la_mm.common.cli import add_cfg_options, clear_errors, find_images, load_config, require_file
from s6la_mm.common.errors import UsageError

# Of an image's path: its picture (height, width, RGB; uint8), what goes into its JSON, a label map or None.
Predict = Callable[[str], 'tuple[np.ndarray, dict, np.ndarray | None]']


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


def detector(cfg: Config, args: argparse.Namespace) -> Predict:
    """A detector: all boxes (x1, y1, x2, y2 in pixels), scores, labels and RLE masks go into the JSON."""
    from mmdet.apis import DetInferencer

    model = DetInferencer(cfg, args.checkpoint, args.device, palette=args.palette, show_progress=False)
    classes = model.model.dataset_meta['classes']

    def predict(path: str) -> tuple[np.ndarray, dict, None]:
        result = model(path, return_vis=True, pred_score_thr=args.score_thr)
        prediction = result['predictions'][0]
        prediction['classes'] = [classes[label] for label in prediction['labels']]
        return result['visualization'][0], prediction, None

    return predict


def segmentor(cfg: Config, args: argparse.Namespace) -> Predict:
    """A segmentor: a legend beside the coloured picture, the share of each class in the JSON, a label map beside it."""
    from mmseg.apis import MMSegInferencer

    model = MMSegInferencer(cfg, args.checkpoint, device=args.device)
    model.show_progress = False
    classes, palette = (model.model.dataset_meta[key] for key in ('classes', 'palette'))

    def predict(path: str) -> tuple[np.ndarray, dict, np.ndarray]:
        result = model(path, return_vis=True, opacity=args.opacity, with_labels=False)
        labels, pixels = np.unique(result['predictions'], return_counts=True)
        shares = {int(k): int(n) / result['predictions'].size for k, n in zip(labels, pixels)}
        ranked = sorted(shares, key=shares.get, reverse=True)
        legend = [(palette[k], f'{classes[k]} {shares[k]:.1%}') for k in ranked]
        picture = with_legend(result['visualization'], legend)
        return picture, {'share': {classes[k]: shares[k] for k in ranked}}, result['predictions']

    return predict


def with_legend(picture: np.ndarray, entries: list[tuple[Sequence[int], str]]) -> np.ndarray:
    """Put a legend to the right of a picture.

    Args:
        picture: (height, width, 3), RGB, uint8.
        entries: colour (RGB, 0 to 255) and text of each line, from top to bottom; what does not fit goes into further
            columns.

    Returns:
        The wider picture, (height, width + legend, 3); lower pictures than one line (22 pixels) are padded to it.
    """
    line, font, size = 22, cv2.FONT_HERSHEY_SIMPLEX, 0.45
    height = max(picture.shape[0], line)
    rows = height // line
    columns = [np.pad(picture, ((0, height - picture.shape[0]), (0, 0), (0, 0)))]
    for start in range(0, len(entries), rows):
        chosen = entries[start : start + rows]
        width = 30 + max(cv2.getTextSize(text, font, size, 1)[0][0] for _, text in chosen)
        column = np.full((height, width, 3), 255, np.uint8)
        for row, (colour, text) in enumerate(chosen):
            column[row * line + 4 : row * line + 18, 4:20] = colour
            cv2.putText(column, text, (25, row * line + 16), font, size, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(column)
    return np.concatenate(columns, axis=1)


def classifier(cfg: Config, args: argparse.Namespace) -> Predict:
    """A classifier: the five best classes and their scores go into the JSON."""
    from mmpretrain.apis import ImageClassificationInferencer
    from mmpretrain.visualization import UniversalVisualizer

    model = ImageClassificationInferencer(cfg, pretrained=args.checkpoint, device=args.device)
    visualizer = UniversalVisualizer()

    def predict(path: str) -> tuple[np.ndarray, dict, None]:
        # Not model(path), which draws a progress bar for each image.
        sample = model.forward(next(model.preprocess([path])))[0]
        scores = sample.pred_score.cpu().numpy()
        best = [dict(label=int(k), score=float(scores[k])) for k in np.argsort(-scores)[:5]]
        for entry in best if model.classes else ():
            entry['class'] = model.classes[entry['label']]
        image = mmcv.imread(path, channel_order='rgb')
        return visualizer.visualize_cls(image, sample, classes=model.classes), {'best': best}, None

    return predict


def write_results(images: list[str], predict: Predict, out_dir: Path) -> None:
    """Predict on each image and write ``out_dir/vis/*.png`` and ``out_dir/preds/*.json``.

    Args:
        images: paths.
        predict: the model.
        out_dir: made where it is missing. Images of one name from different folders get numbers.

    Raises:
        UsageError: if a file is no image.
    """
    used: set[str] = set()
    for path in images:
        if mmcv.imread(path) is None:
            raise UsageError(f'{path} cannot be read as an image')
        picture, prediction, label_map = predict(path)
        name = stem = Path(path).stem
        while name in used:
            name = f'{stem}_{len(used)}'
        used.add(name)
        mmcv.imwrite(picture[..., ::-1], str(out_dir / 'vis' / f'{name}.png'))
        mmengine.dump({'image': path, **prediction}, str(out_dir / 'preds' / f'{name}.json'))
        if label_map is not None:
            dtype = np.uint8 if label_map.max() < 256 else np.uint16
            mmcv.imwrite(label_map.astype(dtype), str(out_dir / 'preds' / f'{name}.png'))


def main() -> None:
    """Predict as the command line says."""
    args = parse_args()
    out_dir = Path(args.out_dir)
    makers = dict(mmdet=detector, mmseg=segmentor, mmpretrain=classifier)
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
        require_file(args.checkpoint, 'checkpoint')
        images = find_images(args.inputs)
        scope = cfg.get('default_scope')
        if scope not in makers:
            raise UsageError(f'default_scope={scope!r} of {args.config} must be one of {", ".join(makers)}')
        init_default_scope(scope)
    with clear_errors(cfg), weights_only():
        write_results(images, makers[scope](cfg, args), out_dir)
    print(f'{len(images)} image(s): pictures in {out_dir / "vis"}, predictions in {out_dir / "preds"}')


if __name__ == '__main__':
    main()
