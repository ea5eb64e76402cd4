"""Check the data sets of a config: files, annotations, labels, leakage. Ends with status 1 if there are errors."""

from __future__ import annotations

import argparse

import s6la_mm  # noqa: F401  (registers the data sets)
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config
from s6la_mm.datasets.checks import check_config_data


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of mmdet, mmseg or mmpretrain')
    splits = ('train', 'val', 'test')
    parser.add_argument('--splits', nargs='+', choices=splits, default=splits, help='default: all')
    parser.add_argument('--decode', action='store_true', help='decode every image, not only its header')
    parser.add_argument('--workers', type=int, default=0, help='threads (default: one for each core)')
    parser.add_argument('--examples', type=int, default=3, help='how many of each kind are named (default: 3)')
    parser.add_argument('--json', metavar='FILE', help='write all findings there')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.workers < 0 or args.examples < 0:
        parser.error('--workers and --examples must not be negative')
    return args


def main() -> None:
    """Checks and reports."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
    with clear_errors(cfg):
        report = check_config_data(cfg, args.splits, args.workers, args.decode)
    print(report.text(args.examples))
    if args.json:
        try:
            report.write(args.json)
        except OSError as error:
            raise SystemExit(f'error: {args.json} cannot be written: {error.strerror}') from error
    raise SystemExit(int(report.has_errors))


if __name__ == '__main__':
    main()
