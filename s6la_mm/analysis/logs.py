"""What mmengine's trainings have logged."""

from __future__ import annotations

import json
import os.path as osp
from glob import escape, glob


def read_losses(work_dir: str) -> list[tuple[int, float]]:
    """All logged losses of a work dir, of all its runs in the order of their starts.

    Args:
        work_dir (str): With ``<time>/vis_data/scalars.json``, one JSON object a line; the last line of a run that was
            killed may be cut off.

    Returns:
        list[tuple[int, float]]: Iteration and loss; an iteration that a resumed run has repeated is there twice.

    Example:
        >>> read_losses('no/such/folder')
        []
    """
    found = []
    for path in sorted(glob(osp.join(escape(str(work_dir)), '*', 'vis_data', 'scalars.json'))):
        with open(path, encoding='utf-8') as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if 'loss' in entry:
                    found.append((entry['step'], entry['loss']))
    return found
