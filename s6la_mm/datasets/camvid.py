"""CamVid: 701 labelled frames of driving videos in 11 classes, the usual small benchmark of street scenes."""

from __future__ import annotations

from collections.abc import Sequence

from mmseg.datasets import BaseSegDataset


class CamVidDataset(BaseSegDataset):
    """CamVid (Brostow et al., 2009) in the 11 classes of SegNet (arXiv 1511.00561), whose label 11 is "unlabelled".

    Label 11 becomes ``ignore_index`` while the label maps are loaded, so neither loss nor metric sees it. Options are
    those of :class:`mmseg.datasets.BaseSegDataset`; ``data_root`` holds ``images/`` and ``annotations/``, each with
    ``train/``, ``val/`` and ``test/``.

    Example:
        >>> prefix = dict(img_path='images/val', seg_map_path='annotations/val')
        >>> dataset = CamVidDataset(data_root='data/camvid', data_prefix=prefix, lazy_init=True)
        >>> dataset.metainfo['classes'][:3]
        ('sky', 'building', 'pole')
    """

    UNLABELLED = 11
    METAINFO = dict(
        classes=(
            *('sky', 'building', 'pole', 'road', 'sidewalk', 'tree'),
            *('sign', 'fence', 'car', 'pedestrian', 'bicyclist'),
        ),
        palette=[
            *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)),
            *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
        ],
    )

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """The base class's map of labels, if there is one, and what makes the unlabelled pixels ignored."""
        return {**(super().get_label_map(new_classes) or {}), cls.UNLABELLED: 255}

    def _update_palette(self) -> list[tuple[int, int, int]]:
        """The colours of the chosen classes; the base class would look for one of the unlabelled pixels."""
        colours: dict = dict(zip(self.METAINFO['classes'], self.METAINFO['palette']))
        return [colours[name] for name in self._metainfo['classes']]
