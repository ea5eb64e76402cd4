"""What an image file says of itself in its first and last bytes."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

_ORIENTATION = 0x0112  # EXIF
_TURNED = ('JPEG', 'MPO')  # asked for it, Pillow would decode a PNG
_TAIL = 4096  # some cameras write a little behind the end of the image


@dataclass(frozen=True)
class ImageFile:
    """An image file, looked at.

    Args:
        path (str): The file.
        problem (str, optional): A kind of finding, or None.
        detail (str): What is wrong.
        size (tuple[int, int], optional): Width and height as they are loaded, EXIF orientation applied.
        num_bytes (int): Length of the file.
    """

    path: str
    problem: str | None = None
    detail: str = ''
    size: tuple[int, int] | None = None
    num_bytes: int = 0


def look_at_image(path: str, decode: bool = False) -> ImageFile:
    """Reads the header of an image and the end of its file.

    Args:
        path (str): The file.
        decode (bool): Decode all pixels, which also finds damage in the middle. Defaults to False.

    Returns:
        ImageFile: Its size, or its problem.

    Example:
        >>> look_at_image('missing.jpg').problem
        'missing-image'
    """
    try:
        num_bytes = os.path.getsize(path)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of Pillow about metadata that is not needed here
            with Image.open(path) as image:
                size = image.size
                # OpenCV, by which mmcv loads, turns the image; labels are for the turned one.
                if image.format in _TURNED and image.getexif().get(_ORIENTATION, 1) >= 5:
                    size = size[::-1]
                if not _has_its_end(path, image.format, num_bytes):
                    return ImageFile(path, 'truncated-image', f'{num_bytes} bytes without an end', size, num_bytes)
                if decode:
                    image.load()
    except FileNotFoundError:
        return ImageFile(path, 'missing-image')
    except UnidentifiedImageError:
        detail = 'it is empty' if num_bytes == 0 else 'no image format is recognised'
        return ImageFile(path, 'unreadable-image', detail, num_bytes=num_bytes)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        kind = 'truncated-image' if 'truncated' in str(error).lower() else 'unreadable-image'
        return ImageFile(path, kind, str(error))
    return ImageFile(path, size=size, num_bytes=num_bytes)


def _has_its_end(path: str, image_format: str | None, num_bytes: int) -> bool:
    end = {'JPEG': b'\xff\xd9', 'MPO': b'\xff\xd9', 'PNG': b'IEND'}.get(image_format or '')
    if end is None:
        return True
    with open(path, 'rb') as file:
        file.seek(max(0, num_bytes - _TAIL))
        return end in file.read()
