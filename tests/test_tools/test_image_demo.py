"""tools/image_demo.py."""

from __future__ import annotations

import json

from tool_runner import call, check


def test_image_demo_on_folder_and_file(mask_rcnn, tmp_path):
    other = tmp_path / 'elsewhere'
    other.mkdir()
    picture = sorted(mask_rcnn['images'].iterdir())[0]
    (other / picture.name).write_bytes(picture.read_bytes())
    check(
        call(
            *('image_demo.py', mask_rcnn['images'], other / picture.name),
            *(mask_rcnn['config'], mask_rcnn['work_dir'] / 'iter_4.pth', '--out-dir', tmp_path / 'out'),
            **mask_rcnn['data'],
        )
    )
    predictions = [json.loads(path.read_text()) for path in (tmp_path / 'out/preds').glob('*.json')]
    # 3 of the folder, and one of the same name from elsewhere that must not overwrite another.
    assert len(predictions) == len(list((tmp_path / 'out/vis').glob('*.png'))) == 4
    first = predictions[0]
    assert first['bboxes'] and len(first['bboxes']) == len(first['classes']) == len(first['masks'])
