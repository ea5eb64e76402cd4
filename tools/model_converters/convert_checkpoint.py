"""Turn a checkpoint of a plain network into one for an S6LA backbone, and say what became of every tensor.

Sources: torchvision, timm, mmpretrain, mmdet, mmseg, the authors of DeiT, Swin and PVTv2, RLA-Net, and S6LA networks;
.pth or .safetensors. docs/checkpoints.md has examples.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from dataclasses import asdict

from mmengine.config import DictAction

from s6la_mm.checkpoint.matching import ACTIONS, Entry
from s6la_mm.common.cli import checkpoint_errors
from s6la_mm.conversion.convert import STORAGE_TYPES, TARGETS, convert_checkpoint


def parse_args() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='file, URL or torchvision://resnet50')
    parser.add_argument('destination', metavar='DST', help='file to write, .pth')
    parser.add_argument('--arch', required=True, help='s6la_r50, s6la_deit_s, s6la_swin_t ..., or a config file')
    parser.add_argument(
        '--from', dest='layout', default='auto', metavar='LAYOUT', help='layout of SRC, or a JSON file (default: auto)'
    )
    parser.add_argument('--to', choices=TARGETS, default='backbone', help='what DST is for (default: backbone)')
    parser.add_argument('--prefix', help='where the backbone is in SRC, e.g. student.backbone. (default: found out)')
    parser.add_argument('--ema', action='store_true', help='take the exponential moving average in SRC')
    parser.add_argument(
        '--options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='of the backbone, e.g. state_dim=64'
    )
    parser.add_argument('--fresh-reads', action='store_true', help='start the reads at zero though SRC has some')
    parser.add_argument(
        '--adapt-channels',
        action='store_true',
        help='for another in_channels: sum or repeat the weights of the first convolution',
    )
    parser.add_argument('--dtype', choices=STORAGE_TYPES, help='store weights as (default: as in SRC)')
    parser.add_argument('--allow-partial', action='store_true', help='write DST though tensors do not match')
    parser.add_argument('--verify', action='store_true', help='run both networks on the same images')
    parser.add_argument('--publish', action='store_true', help="append the start of the file's SHA-256 to its name")
    parser.add_argument('--report', metavar='FILE.json', help='write the report as JSON')
    parser.add_argument('--seed', type=int, default=0, help='of the new parameters (default: 0)')
    return parser.parse_args()


def table(entries: list[Entry]) -> list[str]:
    """The entries as aligned lines, and below them counts and bytes by action."""
    rows = [('checkpoint', 'backbone', 'shape', 'what was done')]
    for e in entries:
        what = e.action + (f': {e.note}' if e.note else '')
        rows.append((e.source or '-', e.target or '-', 'x'.join(map(str, e.shape)) or '1', what))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d}' for a, b, c, d in rows]
    counts = Counter(e.action for e in entries)
    size = {action: sum(e.bytes for e in entries if e.action == action) for action in ACTIONS}
    sums = [f'{a:<9} {counts[a]:>5} tensors {size[a] / 2**20:>9.2f} MiB' for a in ACTIONS if counts[a]]
    return [*lines, '', *sums]


def main() -> None:
    """Converts and reports."""
    args = vars(parse_args())
    report = args.pop('report')
    with checkpoint_errors():
        if report and not os.access(os.path.dirname(report) or '.', os.W_OK):
            raise OSError(f'{report} cannot be written: no such folder, or not writable')
        done = convert_checkpoint(**args)
        match = done.match
        print('\n'.join(table(match.entries)))
        if match.problems:
            print(f'PARTIAL: {match.describe_problems()}')
        if done.difference is not None:
            print(f'verified: largest relative difference {done.difference:.1e}')
        if done.class_names:
            print(done.class_names)
        print(f'{args["source"]} (layout {match.layout}, prefix {match.prefix!r}) -> {done.path}')
        if report:
            with open(report, 'w', encoding='utf-8') as file:
                content = dict(path=done.path, meta=done.meta, difference=done.difference)
                content.update(layout=match.layout, prefix=match.prefix, problems=match.problems)
                content['entries'] = [asdict(entry) for entry in match.entries]
                json.dump(dict(content, counts=Counter(entry.action for entry in match.entries)), file)


if __name__ == '__main__':
    main()
