"""Names of every script in pictures: which installed fonts have their characters."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.logging import print_log
from mmengine.visualization import Visualizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_INSTALL = (
    'install a font that has them (Debian and Ubuntu: fonts-noto-cjk for Chinese, Japanese and Korean, fonts-noto-core '
    'for the other scripts)'
)
# Unifying fonts whose glyphs say only that there is none.
_PLACEHOLDERS = ('Last Resort', '.LastResort', 'Adobe Blank')


def fallback_families(texts: Iterable[str]) -> tuple[str, ...]:
    """Families of installed fonts with the characters that matplotlib's own font, DejaVu Sans, lacks.

    What no font has is logged once, with what to install.

    Args:
        texts (Iterable[str]): What is to be drawn.

    Returns:
        tuple[str]: As few as possible, for a list of families behind the usual one. Empty for Latin, Greek, Cyrillic.

    Example:
        >>> fallback_families(['cat', 'Äpfel', 'кошка'])
        ()
    """
    characters = {c for text in texts for c in text if not c.isascii() and c.isprintable() and not c.isspace()}
    return _families(frozenset(characters)) if characters else ()


def make_figure_legible(figure: Figure) -> None:
    """Lets matplotlib find the characters of all texts of a finished figure."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    families = fallback_families(text.get_text() for text in texts)
    for text in texts if families else ():
        _extend(text, families)


def make_legible(visualizer: Visualizer) -> Visualizer:
    """Lets a visualizer of OpenMMLab draw the names of classes in every script; those in ASCII stay as they were.

    Args:
        visualizer (Visualizer): Of mmengine, mmdet, mmseg or mmpretrain; changed in place. Its ``dataset_meta`` may be
            set later.

    Returns:
        Visualizer: The same one.
    """
    draw_text = visualizer.ax_save.text

    def draw_legible_text(*args: Any, **kwargs: Any) -> Text:
        text = draw_text(*args, **kwargs)
        families = fallback_families([text.get_text(), *_names(visualizer)])
        if families:
            _extend(text, families)
        return text

    visualizer.ax_save.text = draw_legible_text
    if hasattr(visualizer, '_draw_sem_seg'):  # mmseg's, which writes with OpenCV's letters: ASCII
        visualizer._draw_sem_seg = functools.partial(_draw_labelled_map, visualizer, visualizer._draw_sem_seg)
    return visualizer


def _draw_labelled_map(
    visualizer: Visualizer,
    draw: Callable,
    image: np.ndarray,
    sem_seg: Any,
    classes: list[str],
    palette: list,
    with_labels: bool = True,
) -> np.ndarray:
    if not with_labels or all(name.isascii() for name in classes):
        return draw(image, sem_seg, classes, palette, with_labels)
    draw(image, sem_seg, classes, palette, False)  # which becomes the visualizer's image
    label_map = np.asarray(sem_seg.cpu().data[0])
    for label in np.unique(label_map):
        if label < len(classes):
            place = visualizer._get_center_loc(label_map == label)
            box = dict(facecolor=[value / 255 for value in palette[label]], pad=1, edgecolor='k')
            visualizer.draw_texts(classes[label], place, colors='w', bboxes=box)
    return visualizer.get_image()


def _names(visualizer: Visualizer) -> list[str]:
    return [str(name) for name in (visualizer.dataset_meta or {}).get('classes') or ()]


def _extend(text: Text, families: tuple[str, ...]) -> None:
    own = [family for family in text.get_fontfamily() if family not in families]
    text.set_fontfamily([*own, *families])


@functools.cache
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    from matplotlib import font_manager

    own = font_manager.findfont('DejaVu Sans')  # part of matplotlib
    missing = {ord(character) for character in characters} - _codes(own)
    families: list[str] = []
    for look in (_known_fonts, _new_fonts):
        fonts = look() if missing else {}
        while missing and fonts:
            best = max(fonts, key=lambda name: len(missing & _codes(fonts[name])))
            found = missing & _codes(fonts[best])
            if not found:
                break
            families.append(best)
            missing -= found
    if missing:
        shown = ''.join(map(chr, sorted(missing)[:20])) + ('…' if len(missing) > 20 else '')
        print_log(
            f'No installed font has the characters {shown}: pictures show boxes in their place; {_INSTALL}',
            logger='current',
            level=logging.WARNING,
        )
        warnings.filterwarnings('ignore', r'Glyph \d+ .*missing from')  # matplotlib's, one for each letter drawn
    return tuple(families)


def _known_fonts() -> dict[str, str]:
    """A file of each family that matplotlib knows, upright and of usual weight where there is one."""
    from matplotlib import font_manager

    entries = sorted(
        font_manager.fontManager.ttflist,
        key=lambda entry: (entry.style != 'normal', str(entry.weight) not in ('400', 'normal', 'regular')),
    )
    fonts: dict[str, str] = {}
    for entry in entries:
        if not entry.name.startswith(_PLACEHOLDERS):
            fonts.setdefault(entry.name, entry.fname)
    return fonts


def _new_fonts() -> dict[str, str]:
    """The same after a look at the fonts that were installed since matplotlib has listed them."""
    from matplotlib import font_manager

    known = {str(entry.fname) for entry in font_manager.fontManager.ttflist}
    for path in set(map(str, font_manager.findSystemFonts())) - known:
        try:
            font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError):  # no font that matplotlib can read
            continue
    return _known_fonts()


@functools.cache
def _codes(path: str) -> frozenset[int]:
    """The characters of a font file."""
    from matplotlib import font_manager

    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
