"""Files and folders that are there completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s6la_mm.common import files
from s6la_mm.common.errors import UsageError
from s6la_mm.common.files import complete_or_not, put_back, read_json


def write_folder(path: Path, text: str) -> None:
    with complete_or_not(str(path)) as temporary:
        os.mkdir(temporary)
        Path(temporary, 'shard').write_text(text)


def test_a_folder_replaces_a_folder(tmp_path):
    write_folder(tmp_path / 'iter_2.pth', 'old')
    write_folder(tmp_path / 'iter_2.pth', 'new')
    assert os.listdir(tmp_path) == ['iter_2.pth']
    assert (tmp_path / 'iter_2.pth/shard').read_text() == 'new'


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_the_old_folder_is_not_lost_between_the_two_steps(tmp_path, monkeypatch, error):
    """Neither when the new one cannot take its name, nor when a kill comes just then."""
    write_folder(tmp_path / 'iter_2.pth', 'old')
    replace = os.replace

    def fail(source: str, target: str) -> None:
        if source.endswith('.tmp'):
            raise error
        replace(source, target)

    monkeypatch.setattr(files.os, 'replace', fail)
    with pytest.raises(error):
        write_folder(tmp_path / 'iter_2.pth', 'new')
    put_back(str(tmp_path))  # as the next start does
    assert (tmp_path / 'iter_2.pth/shard').read_text() == 'old'


def test_damaged_json_is_named(tmp_path):
    (tmp_path / 'outcome.json').write_text('{"status": "fin')
    with pytest.raises(UsageError, match=r'outcome\.json is damaged'):
        read_json(str(tmp_path / 'outcome.json'))
