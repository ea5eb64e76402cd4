"""Check the data sets of a config: files, annotations, labels, leakage. Ends with status 1 if there are errors."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict

import s6la_mm  # noqa: F401  (registers the data sets)
from s6la_mm.common.cli import add_cfg_options, clear_errors, load_config
from s6la_mm.common.files import write_atomically
from s6la_mm.datasets.checks import check_config_data
from s6la_mm.datasets.checks.findings import KINDS, Report


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


def table(report: Report, examples: int) -> str:
    """The kinds of findings with some examples of each, and what was looked at."""
    by_kind = defaultdict(list)
    for finding in report.findings:
        by_kind[finding.kind].append(finding)
    lines = []
    width = max(map(len, by_kind), default=0)
    for kind, (level, advice) in KINDS.items():  # errors come first there
        found = by_kind.get(kind, [])
        if not found:
            continue
        lines.append(f'{level:5}  {kind:{width}}  {len(found):>2}  {advice}')
        indent = ' ' * (width + 13)
        for finding in found[:examples]:
            detail = f': {finding.detail}' if finding.detail else ''
            lines.append(f'{indent}{finding.split}: {finding.where}{detail}')
        if len(found) > examples:
            lines.append(f'{indent}... and {len(found) - examples} more')
    errors = sum(finding.level == 'error' for finding in report.findings)
    speed = f'{report.images / report.seconds:.0f} images/s' if report.seconds else 'no time measured'
    summary = 'no errors' if not errors else f'{errors} error{"s" if errors > 1 else ""}'
    return '\n'.join([*lines, f'{report.images} images in {report.seconds:.1f} s ({speed}): {summary}'])


def main() -> None:
    """Checks and reports."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
    with clear_errors(cfg):
        report = check_config_data(cfg, args.splits, args.workers, args.decode)
    print(table(report, args.examples))
    if args.json:
        try:
            findings = [{'level': finding.level, **asdict(finding)} for finding in report.findings]
            content = dict(images=report.images, seconds=round(report.seconds, 3), findings=findings)
            write_atomically(args.json, json.dumps(content, indent=1, ensure_ascii=False))
        except OSError as error:
            raise SystemExit(f'error: {args.json} cannot be written: {error.strerror}') from error
    raise SystemExit(int(report.has_errors))


if __name__ == '__main__':
    main()
