"""What an image file says of itself in its first and last bytes, and what the config's loader makes of it."""

from __future__ import annotations

import os
import os.path as osp
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, BinaryIO

from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.fileio import LocalBackend, get_file_backend
from PIL import Image, UnidentifiedImageError

from .findings import in_words

_ORIENTATION = 0x0112  # EXIF
_TAIL = 4096  # some cameras write a little behind the end of the image
_ENDS = {'JPEG': b'\xff\xd9', 'MPO': b'\xff\xd9', 'PNG': b'IEND'}


@dataclass(frozen=True)
class ImageFile:
    """An image file, looked at.

    Args:
        path (str): The file.
        problem (str, optional): A kind of finding, or None.
        detail (str): What is wrong.
        size (tuple[int, int], optional): Width and height: as the header says, then as they are loaded.
        num_bytes (int): Length of the file.
        kind (tuple, optional): Format, mode, and whether EXIF says to turn it by 90 degrees; None if it is not known.
    """

    path: str
    problem: str | None = None
    detail: str = ''
    size: tuple[int, int] | None = None
    num_bytes: int = 0
    kind: tuple[str, str, bool] | None = None


class ImageLoader:
    """The transforms of a pipeline that load the image.

    Args:
        transforms (Sequence): The pipeline; without a loader in it, the usual one is taken.
        backend_args (dict, optional): For the usual one.
    """

    def __init__(self, transforms: Sequence[Any], backend_args: dict | None = None) -> None:
        steps = [transform for transform in transforms if not isinstance(transform, LoadAnnotations)]
        self.steps = steps or [LoadImageFromFile(backend_args=backend_args)]
        self.backend_args = getattr(self.steps[0], 'backend_args', backend_args)

    def __call__(self, entry: dict) -> dict:
        """Loads an image into a copy of its entry.

        Raises:
            Exception: Whatever a transform raises; a ValueError where it gives up silently.
        """
        results = dict(entry)
        for step in self.steps:
            results = step(results)
            if results is None:
                raise ValueError(f'{type(step).__name__} gives nothing')
            if 'img' in results:
                break
        return results

    def open(self, path: str) -> BinaryIO:
        """The bytes of a file, wherever it is."""
        if self.backend_args is None and '://' not in path:
            return open(path, 'rb')
        backend = get_file_backend(path, backend_args=self.backend_args, enable_singleton=True)
        return open(path, 'rb') if isinstance(backend, LocalBackend) else BytesIO(backend.get(path))


class ImageCheck:
    """Looks at image files; of each kind of file, the config's loader decodes one, to see whether and how it loads.

    Args:
        loader (ImageLoader): The config's.
        decode (bool): Decode every image: damage in the middle is found, too.
    """

    def __init__(self, loader: ImageLoader, decode: bool = False) -> None:
        self.loader = loader
        self.decode = decode
        self._turns: dict[tuple[str, str, bool], bool] = {}  # by kind, whether the loader turns it
        self._lock = threading.Lock()

    def __call__(self, entry: dict, path: str) -> ImageFile:
        """Looks at one file of an entry."""
        file = look_at_image(path, self.decode, self.loader.open)
        if file.problem in ('missing-image', 'truncated-image') or entry.get('img_path') != path:
            return file  # one of several files of a sample has no loader of its own
        if self.decode and file.kind is not None:
            return self._load(entry, file)
        with self._lock:  # one at a time: those that Pillow refuses may be huge
            if file.kind not in self._turns:
                return self._load(entry, file)
        return replace(file, size=file.size[::-1]) if file.size and self._turns[file.kind] else file

    def _load(self, entry: dict, file: ImageFile) -> ImageFile:
        try:
            results = self.loader(entry)
        except Exception as error:  # of whatever library decodes it
            what = ' '.join(map(str, file.kind[:2])) + ': ' if file.kind else ''
            return replace(file, problem='unreadable-image', detail=file.detail or what + in_words(error))
        shape = results.get('img_shape')
        if file.problem and not file.kind:  # what Pillow does not know is good if the loader knows it
            file = replace(file, problem=None, detail='')
        if shape is None or file.problem:
            return file
        size = (shape[1], shape[0])
        if (
            file.kind
            and file.size
            and size in (file.size, file.size[::-1])
            and not (file.kind[2] and size[0] == size[1])
        ):
            self._turns[file.kind] = size != file.size
        return replace(file, size=size)


def look_at_image(path: str, decode: bool = False, opener: Callable[[str], BinaryIO] | None = None) -> ImageFile:
    """Reads the header of an image and the end of its file.

    Args:
        path (str): The file.
        decode (bool): Decode the pixels of JPEG and PNG files, which also finds damage in the middle that OpenCV
            passes over. Defaults to False.
        opener (Callable, optional): Opens it. Defaults to None: it is on a disk.

    Returns:
        ImageFile: Its size, or its problem.

    Example:
        >>> look_at_image('missing.jpg').problem
        'missing-image'
    """
    num_bytes = 0
    try:
        with opener(path) if opener else open(path, 'rb') as stream, warnings.catch_warnings():
            num_bytes = stream.seek(0, 2)
            stream.seek(0)
            warnings.simplefilter('ignore')  # of Pillow about metadata that is not needed here
            with Image.open(stream) as image:
                size, kind = image.size, (image.format or '', image.mode, _is_turned(image))
                position = stream.tell()
                if not _has_its_end(stream, image.format, num_bytes):
                    detail = f'{num_bytes} bytes without an end'
                    return ImageFile(path, 'truncated-image', detail, None, num_bytes, kind)
                stream.seek(position)
                if decode and image.format in _ENDS:
                    image.load()
    except FileNotFoundError:
        return ImageFile(path, 'missing-image')
    except UnidentifiedImageError:
        detail = 'it is empty' if num_bytes == 0 else 'no image format is recognised'
        return ImageFile(path, 'unreadable-image', detail, num_bytes=num_bytes)
    except (OSError, SyntaxError, KeyError) as error:  # a KeyError of a path that is none to mmengine
        problem = 'truncated-image' if 'truncated' in str(error).lower() else 'unreadable-image'
        return ImageFile(path, problem, in_words(error), num_bytes=num_bytes)
    except (ValueError, Image.DecompressionBombError):  # limits of Pillow, which the loader may not have
        return ImageFile(path, num_bytes=num_bytes)
    return ImageFile(path, None, '', size, num_bytes, kind)


def _is_turned(image: Image.Image) -> bool:
    if image.format == 'PNG' and 'exif' not in image.info:
        return False  # asked for it, Pillow would decode the image
    return image.getexif().get(_ORIENTATION, 1) >= 5


def _has_its_end(stream: BinaryIO, image_format: str | None, num_bytes: int) -> bool:
    if image_format not in _ENDS:
        return True
    stream.seek(max(0, num_bytes - _TAIL))
    return _ENDS[image_format] in stream.read()


def paths_of(entry: dict) -> list[str]:
    """The image files of what a data set gives for a sample: one, or several channels or moments."""
    values = [value for key, value in entry.items() if key.startswith('img_path')]
    flat = [path for value in values for path in (value if isinstance(value, (list, tuple)) else [value])]
    return [path for path in flat if isinstance(path, (str, bytes)) or hasattr(path, '__fspath__')]


def name_beside(path: str, names: dict[str, dict[str, str]]) -> str:
    """The file of a folder whose name differs from a missing one in its suffix, or in upper and lower case.

    Args:
        path (str): The missing file.
        names (dict): Files of folders by the beginnings of their names in lower case; folders are added.
    """
    folder, name = osp.split(path)
    if folder not in names:
        files = os.listdir(folder) if osp.isdir(folder) else ()
        names[folder] = {osp.splitext(file)[0].lower(): file for file in files}
    return names[folder].get(osp.splitext(name)[0].lower(), '')
