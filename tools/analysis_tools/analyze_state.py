"""Look inside a trained S6LA model: what its state keeps, selects, and hands to the blocks, as figures and a page."""

from __future__ import annotations

import argparse
import os

import mmcv

import s6la_mm  # noqa: F401  (registers the backbones; allow-lists what checkpoints hold)
from s6la_mm.analysis.figures import write_state_page
from s6la_mm.analysis.state import StateAnalysis
from s6la_mm.common.cli import add_cfg_options, clear_errors, find_images, load_config, require_file, require_writable
from s6la_mm.common.inference import init_model, predictor


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', help='images, folders, or quoted glob patterns')
    parser.add_argument('--out-dir', default='state', help='gets index.html, figures and analysis.json (state)')
    parser.add_argument('--maps', type=int, default=2, help='images beside which the state is shown (2)')
    parser.add_argument('--device', help='cpu, cuda:0 … (default: an accelerator if there is one)')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.maps < 0:
        parser.error(f'--maps {args.maps} must not be negative')
    return args


def main() -> None:
    """Run the images, write the page and print its path."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
        require_file(args.checkpoint, 'checkpoint')
        images = find_images(args.images)
        require_writable(args.out_dir)
        if cfg.get('default_scope') == 'mmseg':
            cfg.model.test_cfg = dict(mode='whole')  # one pass over an image: windows would have states of their own
    with clear_errors(cfg):
        model = init_model(cfg, args.checkpoint, args.device)
        predict = predictor(cfg, model)
        analysis = StateAnalysis(model.backbone)
    maps = []
    for number, path in enumerate(images):
        with analysis.watching():
            predict(path)
        if number < args.maps:
            last = {write.cell: index for index, write in enumerate(analysis.writes)}  # of each stage
            states = {index: analysis.writes[index].map for index in last.values()}
            if None not in states.values():
                maps.append((path, mmcv.imread(path, channel_order='rgb'), states))
    title = f'The state of {os.path.splitext(os.path.basename(args.config))[0]}'
    page = write_state_page(analysis, maps, title, args.checkpoint, args.out_dir)
    summary = analysis.summary()
    for write in summary['writes']:
        new = '' if write['new'] is None else f'  new {write["new"]:.2f}'
        print(
            f'{write["cell"]:<20} decay {write["decay"][2]:.3f} [{write["decay"][0]:.3f} .. {write["decay"][4]:.3f}]  '
            f'Δ {write["delta"][2]:.4f}  state {write["state_rms"]:.3f}  holds {write["held"]:.1f} writes{new}'
        )
    print('reads: ' + ', '.join(f'{read["share"]:.3f}' for read in summary['reads']))
    print(f'Page: {page}')


if __name__ == '__main__':
    main()
