"""What the command line tools share: options, config loading, and errors that name the fix."""

from __future__ import annotations

import argparse
import glob
import os
import os.path as osp
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.config.utils import MODULE2PACKAGE, ConfigParsingError
from mmengine.hub import get_config
from mmengine.utils import import_modules_from_strings

from .errors import UsageError

_MISSING_FILE = re.compile(
    r"No such file or directory: '(?P<os>[^']+)'"
    r'|(?P<checkpoint>\S+) can not be found'
    r'|Failed to load `ann_file` (?P<ann>\S+)'
)
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# The environment variables of configs/_base_: where the data is if they are not set, and what is there.
DATA_ROOTS = {
    'COCO_ROOT': ('data/coco', 'annotations/, train2017/ and val2017/'),
    'VOC_ROOT': ('data/VOCdevkit', 'VOC2007/ and VOC2012/'),
    'LVIS_ROOT': ('data/lvis_v1', 'annotations/, train2017/ and val2017/'),
    'CITYSCAPES_ROOT': ('data/cityscapes', 'leftImg8bit/, gtFine/ and, for detectors, annotations/'),
    'ADE20K_ROOT': ('data/ade/ADEChallengeData2016', 'images/ and annotations/'),
    'CAMVID_ROOT': ('data/camvid', 'images/ and annotations/'),
    'IMAGENET_ROOT': ('data/imagenet', 'train/ and val/'),
}
_NOT_REGISTERED = re.compile(r'(\S+) is not in the \S+ registry')
_SHARED_MEMORY = re.compile(r'insufficient shared memory|out of shared memory|bus error', re.IGNORECASE)
_TOO_LITTLE_SHARED_MEMORY = (
    "/dev/shm is too small for the batches of the data loaders' workers: enlarge it (docker's --shm-size or "
    '--ipc=host), or lower num_workers of the dataloaders'
)


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every OpenMMLab train and test tool has.

    Args:
        parser (ArgumentParser): Gets ``--work-dir --cfg-options --launcher --local_rank``.
    """
    parser.add_argument(
        '--work-dir',
        help="folder for logs and checkpoints (default: the config's work_dir, else ./work_dirs/<config>)",
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='who started this process',
    )
    # torch.distributed.launch passes the dashed spelling since PyTorch 2.0, the other one before.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options key=value …`` to a parser."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override config entries, e.g. train_cfg.max_epochs=1 key="[a,b]" (quote lists, no blanks)',
    )


def load_config(
    path: str, cfg_options: dict | None = None, work_dir: str | None = None, launcher: str = 'none'
) -> Config:
    """Read a config the way OpenMMLab's tools do.

    Args:
        path (str): The config file, or the name of one in a package, ``s6la_mm::mask_rcnn/...``.
        cfg_options (dict, optional): Overrides, as ``DictAction`` parses them. Defaults to None.
        work_dir (str, optional): Goes before the config's own ``work_dir``, which goes before
            ``./work_dirs/<config name>``. Defaults to None.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``. Defaults to ``'none'``.

    Returns:
        Config: With ``work_dir`` and ``launcher`` set.

    Raises:
        FileNotFoundError: If the file is not there.

    Example:
        >>> cfg = load_config('configs/quickstart/mask-rcnn_s6la-r18_shapes.py', {'train_cfg.max_iters': 2})
        >>> cfg.work_dir
        './work_dirs/mask-rcnn_s6la-r18_shapes'
    """
    if '::' in path:
        cfg = _config_of_package(path)
    else:
        require_file(path, 'config')
        cfg = Config.fromfile(path)
    if cfg.get('custom_imports'):  # of a config in pure Python, which mmengine leaves out
        import_modules_from_strings(**cfg.custom_imports)
    cfg.launcher = launcher
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', osp.splitext(osp.basename(path))[0])
    return cfg


def _config_of_package(name: str) -> Config:
    package, _, path = name.partition('::')
    if package not in MODULE2PACKAGE or find_spec(package) is None:  # which mmengine would install
        raise UsageError(f'config {name}: there is no package {package!r} with configs in this environment')
    try:
        return get_config(name)
    except (FileNotFoundError, ValueError):
        raise FileNotFoundError(
            f'config {path} is not among those of {package}: name it with its folder and .py'
        ) from None


def find_images(inputs: list[str]) -> list[str]:
    """Expand images, folders and glob patterns.

    Args:
        inputs (list[str]): Paths or patterns; of a folder the images directly in it are taken.

    Returns:
        list[str]: Sorted paths without repetition.

    Raises:
        FileNotFoundError: If one of ``inputs`` matches no image.
    """
    images = set()
    for item in inputs:
        pattern = os.path.join(glob.escape(item), '*') if os.path.isdir(item) else item
        # An existing file is taken as it is, even with brackets in its name or an unusual suffix.
        found = [item] if os.path.isfile(item) else glob.glob(pattern, recursive=True)
        found = [path for path in found if path == item or path.lower().endswith(IMAGE_SUFFIXES)]
        if not found:
            raise FileNotFoundError(f'no image matches {item!r}; looked for {", ".join(IMAGE_SUFFIXES)}')
        images.update(found)
    return sorted(images)


def require_file(path: str, what: str) -> None:
    """Check that a file given on the command line is there; addresses such as ``https://`` pass.

    Args:
        path (str): The path or address.
        what (str): What it is, for the message.

    Raises:
        FileNotFoundError: Naming ``what`` and the path.
    """
    if '://' not in path and not osp.isfile(path):
        raise FileNotFoundError(f'{what} {path!r} does not exist (looked for in {os.getcwd()})')


def require_writable(folder: str) -> None:
    """Checks before a run that its folder can be made and written to.

    Args:
        folder (str): The work dir.

    Raises:
        UsageError: Naming the folder and the reason.
    """
    probe = osp.join(folder, f'.writable-{os.getpid()}')
    try:
        os.makedirs(folder, exist_ok=True)
        with open(probe, 'w') as file:
            file.write('x')
        os.remove(probe)
    except OSError as error:
        raise UsageError(f'{folder} cannot be written to ({error.strerror}): choose another --work-dir') from error


@contextmanager
def clear_errors(cfg: Config | None = None) -> Iterator[None]:
    """Turn the mistakes that users make most into one message and exit status 1.

    A missing config, checkpoint, annotation or image file (also one that a DataLoader worker missed) is
    reported with its path and what to set; a name that is in no registry with the ``custom_imports`` line; a
    package that a data set or metric wants with how to install it; workers without enough shared memory; mistakes of
    configs in pure Python. Everything else passes.

    Args:
        cfg (Config, optional): The config, once it is known: its keys are named in the message.

    Raises:
        SystemExit: With the message, which Python prints to stderr.
    """
    try:
        yield
    except (FileNotFoundError, AssertionError, KeyError, ValueError, ImportError, RuntimeError) as error:
        message = explain(error, cfg)
        if message is None:
            raise
        raise SystemExit(f'error: {message}') from error


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """Turn the errors of s6la_mm.checkpoint, which are sentences for users, into one line and exit status 1.

    Raises:
        SystemExit: With the message, which Python prints to stderr.
    """
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f'error: {error}') from error


def explain(error: BaseException, cfg: Config | None = None) -> str | None:
    """Say what is missing and what to set, or None where the error is of another kind."""
    text = str(error)
    if isinstance(error, KeyError):
        match = _NOT_REGISTERED.search(text)
        if match is None:
            return None
        name = match.group(1).lstrip('\'"')
        return (
            f'{name} is not registered in any package that this config imports. If it is from s6la_mm, add\n'
            "    custom_imports = dict(imports=['s6la_mm'], allow_failed_imports=False)\n"
            f"to the config; else check the spelling of type={name!r} and the config's default_scope."
        )
    if isinstance(error, (ImportError, RuntimeError)) and 'pip install' in text:
        return ' '.join(text.split())  # upstream's, of lvis, panopticapi, cityscapesscripts …
    if isinstance(error, (ImportError, ConfigParsingError)):
        is_mistake = isinstance(error, ConfigParsingError) or text.startswith('Failed to import')  # mmengine's words
        return text.partition('\n')[0] if is_mistake else None
    if isinstance(error, RuntimeError):
        return _TOO_LITTLE_SHARED_MEMORY if _SHARED_MEMORY.search(text) else None
    path = _missing_path(error, text)
    if path is not None:
        return f'{path} does not exist. {_what_to_set(path, cfg)}'
    # Raised by require_file and by the tools themselves: already says what to do.
    return text if isinstance(error, (UsageError, FileNotFoundError)) else None


def _missing_path(error: BaseException, text: str) -> str | None:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return str(error.filename)
    # A DataLoader worker's error arrives as text only: its traceback is the message.
    match = _MISSING_FILE.search(text)
    return match[match.lastgroup] if match and match.lastgroup else None


def _what_to_set(path: str, cfg: Config | None) -> str:
    for variable, (default, content) in DATA_ROOTS.items():
        root = os.environ.get(variable, default)
        if _is_under(path, root):
            hint = f'Set the environment variable {variable} (now {root!r}) to the folder that holds {content}.'
            if variable in os.environ:
                return hint
            return f'{hint} A config that does not read it, such as one on mmdet::, finds them where {root} is a link.'
    entries = list(_string_entries(cfg._cfg_dict)) if cfg is not None else []
    hints = []
    for fits in (_is_under, lambda path, value: path == value or path.endswith('/' + value)):
        matches = [(key, value) for key, value in entries if fits(path, value)]
        if matches:
            value = max((value for _, value in matches), key=len)
            keys = ', '.join(key for key, other in matches if other == value)
            hints.append(f'{keys} (now {value!r})')
    return f'It comes from the config: set {" or ".join(hints)}.' if hints else 'Check the path.'


def _is_under(path: str, folder: str) -> bool:
    return osp.abspath(path).startswith(osp.abspath(folder).rstrip('/') + '/')


def _string_entries(node: Any, prefix: str = '') -> Iterator[tuple[str, str]]:
    """Yield (dotted key, value) of the config's strings that the runner reads."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)):
            yield from _string_entries(value, f'{prefix}{key}.')
        # A plain top-level string (data_root = …) is a variable of the file: overriding it changes nothing.
        elif isinstance(value, str) and value and (prefix or key == 'load_from'):
            yield f'{prefix}{key}', value
