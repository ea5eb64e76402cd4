"""Reading what mmengine logs."""

from __future__ import annotations

import json
from pathlib import Path

from s6la_mm.analysis.logs import read_entries, read_losses


def write_scalars(folder: Path, *entries: dict, rest: str = '') -> None:
    path = folder / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries) + rest)


def test_runs_in_the_order_of_their_starts(tmp_path):
    """A resumed run repeats what its predecessor, which was killed, had done since its checkpoint."""
    first = [dict(loss=1.0, step=10), {'coco/bbox_mAP': 0.1, 'step': 0}, dict(loss=2.0, step=20)]
    second = [dict(loss=3.0, step=20), dict(loss=4.0, step=30)]
    work_dir = tmp_path / 'with [brackets]'
    write_scalars(work_dir / '20260101_2', *second)
    write_scalars(work_dir / '20260101_1', *first, rest='{"step": 30, "lo')
    assert read_entries(work_dir) == [first, second]
    assert read_losses(work_dir) == [(10, 1.0), (20, 2.0), (20, 3.0), (30, 4.0)]
