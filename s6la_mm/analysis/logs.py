"""What mmengine's trainings have logged."""

from __future__ import annotations

import json
import os.path as osp
from glob import escape, glob


def read_entries(work_dir: str) -> list[list[dict]]:
    """What the runs of a work dir logged.

    Args:
        work_dir (str): With ``<time>/vis_data/scalars.json``, one JSON object a line; the last line of a run that was
            killed may be cut off, and is left out then, as is what is no entry.

    Returns:
        list[list[dict]]: The entries of each run, in the order of their starts.
    """
    runs = []
    for path in sorted(glob(osp.join(escape(str(work_dir)), '*', 'vis_data', 'scalars.json'))):
        entries = []
        with open(path, encoding='utf-8', errors='replace') as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(entry, dict) and 'step' in entry:
                    entries.append(entry)
        runs.append(entries)
    return runs


def read_losses(work_dir: str) -> list[tuple[int, float]]:
    """All logged losses of a work dir, of all its runs in the order of their starts.

    Args:
        work_dir (str): As for :func:`read_entries`.

    Returns:
        list[tuple[int, float]]: Iteration and loss; an iteration that a resumed run has repeated is there twice.

    Example:
        >>> read_losses('no/such/folder')
        []
    """
    return [(e['step'], e['loss']) for entries in read_entries(work_dir) for e in entries if 'loss' in e]
