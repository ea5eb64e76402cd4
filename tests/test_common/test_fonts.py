"""Characters that matplotlib's own font lacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib import pyplot as plt
from mmengine.logging import MMLogger
from mmengine.structures import PixelData

from s6la_mm.common import fonts
from s6la_mm.common.fonts import fallback_families, make_figure_legible, make_legible

CAT, DOG = '\U00013001\U00013002', '\U00013003'  # hieroglyphs, which hardly a machine has


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a font whose letters are black squares for some characters."""
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', list(font_manager.fontManager.ttflist))
    paths: list[str] = []
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda *args, **kwargs: paths)

    def install(family: str, characters: str) -> None:
        names = {ord(character): f'u{ord(character):X}' for character in characters}
        builder, pen = FontBuilder(1000, isTTF=True), TTGlyphPen(None)
        for number, point in enumerate([(50, 0), (50, 800), (950, 800), (950, 0)]):
            (pen.lineTo if number else pen.moveTo)(point)
        pen.closePath()
        square = pen.glyph()
        builder.setupGlyphOrder(['.notdef', *names.values()])
        builder.setupCharacterMap(names)
        builder.setupGlyf(dict.fromkeys(['.notdef', *names.values()], square))
        builder.setupHorizontalMetrics(dict.fromkeys(['.notdef', *names.values()], (1000, 50)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable(dict(familyName=family, styleName='Regular'))
        builder.setupOS2(sTypoAscender=800)
        builder.setupPost()
        builder.save(tmp_path / f'{family}.ttf')
        paths.append(str(tmp_path / f'{family}.ttf'))
        fonts._families.cache_clear()

    fonts._families.cache_clear()
    yield install
    fonts._families.cache_clear()


def test_as_few_fonts_as_have_the_characters(installed):
    installed('Both', CAT + DOG)
    installed('Dogs', DOG)
    assert fallback_families([CAT, 'dog', DOG]) == ('Both',)
    assert fallback_families(['Äpfel und Birnen, кошка']) == ()


def test_characters_of_no_font_are_named_with_what_to_install(installed, capsys):
    installed('Dogs', DOG)
    MMLogger.get_instance('fonts')
    for _ in range(2):
        assert fallback_families([CAT, DOG]) == ('Dogs',)
    (note,) = [line for line in capsys.readouterr().out.splitlines() if 'No installed font' in line]
    assert CAT in note and DOG not in note and 'fonts-noto-cjk' in note


def black(picture: np.ndarray) -> int:
    return int((picture.max(-1) < 60).sum())


def test_figures_and_pictures_show_the_letters(installed):
    """The squares of the font are drawn, not the empty box of a missing letter."""
    from mmengine.visualization import Visualizer

    installed('Both', CAT + DOG)
    blank = np.full((60, 200, 3), 255, np.uint8)
    drawn = []
    for prepare in (lambda visualizer: visualizer, make_legible):
        visualizer = prepare(Visualizer(image=blank))
        visualizer.draw_texts([CAT, 'ok'], np.array([[10, 10], [100, 10]]), font_sizes=20, colors='k')
        drawn.append(black(visualizer.get_image()[:, :90]))
    assert drawn[1] > 2 * drawn[0]
    figure, axes = plt.subplots()
    title = axes.set_title(f'{CAT} {DOG}')
    make_figure_legible(figure)
    assert title.get_fontfamily() == ['sans-serif', 'Both'] and axes.xaxis.label.get_fontfamily()[0] == 'sans-serif'
    plt.close(figure)


def test_labels_of_a_segmentation(installed):
    """mmseg writes them with OpenCV, which has ASCII only; names in ASCII are left to it."""
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    installed('Both', CAT + DOG)
    labels = torch.zeros(1, 64, 128, dtype=torch.long)
    labels[..., 64:] = 1
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    blank, pictures = np.full((64, 128, 3), 255, np.uint8), {}
    for names in (('cat', 'dog'), (CAT, DOG)):
        for prepare in (lambda visualizer: visualizer, make_legible):
            visualizer = prepare(SegLocalVisualizer(alpha=1.0))
            visualizer.dataset_meta = dict(classes=names, palette=[[200, 0, 0], [0, 0, 200]])
            visualizer.add_datasample('', blank, sample, draw_gt=False)
            pictures[names, prepare is make_legible] = visualizer.get_image()
    assert (pictures[('cat', 'dog'), True] == pictures[('cat', 'dog'), False]).all()
    white = [(pictures[(CAT, DOG), legible].min(-1) > 200).sum() for legible in (False, True)]
    assert white[1] > 2 * white[0]
