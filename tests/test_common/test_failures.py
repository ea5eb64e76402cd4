"""A bad file spoils only itself; and what is read as an image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from s6la_mm.common.errors import UsageError
from s6la_mm.common.failures import Failures
from s6la_mm.common.inference import read_image


def save_image(path, **options: object) -> bytes:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)).save(path, **options)
    return path.read_bytes()


def test_the_others_go_on_and_the_end_names_what_failed(capsys):
    failures = Failures()
    for name in 'abcd':
        with failures.of(name):
            if name == 'b':
                raise UsageError('b is empty')
            if name == 'c':
                raise IndexError('0')
    with pytest.raises(SystemExit) as end:
        failures.end()
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines() == ['2 of 4 failed:', '  b is empty', '  c: IndexError: 0']


def test_an_error_that_spoils_all_keeps_its_traceback():
    """It is none of the files."""
    failures = Failures()
    for name in 'ab':
        with failures.of(name):
            raise IndexError(name)
    with pytest.raises(IndexError, match='a'):
        failures.end()


def test_a_single_file_has_one_sentence():
    failures = Failures()
    with failures.of('a.jpg'):
        raise UsageError('a.jpg is empty')
    with pytest.raises(SystemExit, match=r'error: a\.jpg is empty'):
        failures.end()


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp', 'webp'])
def test_images_and_their_beginnings(tmp_path, suffix):
    path = tmp_path / f'image.{suffix}'
    content = save_image(path)
    assert read_image(str(path)).shape == (64, 80, 3)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=rf'image\.{suffix} (is damaged|cannot be read)'):
        read_image(str(path))


def test_what_is_no_image(tmp_path):
    for name, content in (('empty.jpg', b''), ('text.jpg', b'no image'), ('page.png', b'<html></html>')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=f'{name} cannot be read as an image'):
            read_image(str(tmp_path / name))
    (tmp_path / 'folder.jpg').mkdir()
    with pytest.raises(UsageError, match=r'folder\.jpg is a folder'):
        read_image(str(tmp_path / 'folder.jpg'))
    with pytest.raises(UsageError, match='No such file'):
        read_image(str(tmp_path / 'missing.jpg'))
