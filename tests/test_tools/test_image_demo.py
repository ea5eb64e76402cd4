"""tools/image_demo.py."""

from __future__ import annotations

import json

from tool_runner import call


def test_image_demo_on_folders_with_bad_files(mask_rcnn, tmp_path):
    other = tmp_path / 'elsewhere'
    other.mkdir()
    picture = sorted(mask_rcnn['images'].iterdir())[0]
    (other / picture.name).write_bytes(picture.read_bytes())
    # Bad files spoil nothing, and are named at the end.
    (other / '0.jpg').write_bytes(b'')
    (other / '1.png').write_bytes(picture.read_bytes()[:-200])
    (other / '2.jpg').mkdir()
    result = call(
        *('image_demo.py', mask_rcnn['images'], other),
        *(mask_rcnn['config'], mask_rcnn['work_dir'] / 'iter_4.pth', '--out-dir', tmp_path / 'out'),
        **mask_rcnn['data'],
    )
    assert result.returncode == 1 and '4 image(s)' in result.stdout and 'Traceback' not in result.stderr
    assert '3 of 7 failed' in result.stderr
    assert all(name in result.stderr for name in ('0.jpg cannot be read', '1.png', '2.jpg is a folder'))
    predictions = [json.loads(path.read_text()) for path in (tmp_path / 'out/preds').glob('*.json')]
    # 3 of the folder, and one of the same name from elsewhere that must not overwrite another.
    assert len(predictions) == len(list((tmp_path / 'out/vis').glob('*.png'))) == 4
    first = predictions[0]
    assert first['bboxes'] and len(first['bboxes']) == len(first['classes']) == len(first['masks'])
