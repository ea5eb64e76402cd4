"""What the tools say of files that are not there."""

from __future__ import annotations

import pytest
from tool_runner import call


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        (('train.py', 'nowhere.py'), "config 'nowhere.py' does not exist"),
        (('test.py', '{config}', 'nowhere.pth'), "checkpoint 'nowhere.pth' does not exist"),
        (('image_demo.py', 'nowhere/*.jpg', '{config}', __file__), "no image matches 'nowhere/*.jpg'"),
        (('analysis_tools/make_report.py', '{folder}/none'), 'not the work dir of a training'),
        (('analysis_tools/make_report.py', '{folder}'), 'no logged loss'),
        (('image_demo.py', __file__, '{config}', __file__, '--cfg-options', 'default_scope=mm'), "'mm'"),
    ],
)
def test_wrong_input(command, message, tmp_path):
    """One message, no traceback."""
    config = tmp_path / 'config.py'
    config.write_text("default_scope = 'mmdet'\n")
    tool, *args = (part.format(config=config, folder=tmp_path) for part in command)
    result = call(tool, *args)
    assert result.returncode == 1 and result.stderr.startswith('error: ') and message in result.stderr
