"""What a check can find, how bad it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

# kind: (level, what it means and what to do). An error stops a training or makes it learn what is wrong; a note
# is for information.
KINDS = {
    'missing-file': ('error', 'an annotation file or folder is not there: correct the path'),
    'broken-file': ('error', 'an annotation file cannot be read: get it anew'),
    'missing-image': ('error', 'the file is not there: get it, or remove its entry'),
    'unreadable-image': ('error', 'no image, or of an unknown format: get it anew'),
    'truncated-image': ('error', 'the end of the file is missing, and the image ends in grey: get it anew'),
    'size-mismatch': ('error', 'boxes and masks are for another size: the file or the entry is wrong'),
    'duplicate-image-id': ('error', 'one of the images takes the annotations of the other: give it an id of its own'),
    'duplicate-annotation-id': ('error', 'evaluation drops all but one: number the annotations anew'),
    'duplicate-file': (
        'error',
        'listed more than once: the image counts more than others, or with half of its objects',
    ),
    'annotation-without-image': ('error', 'its image_id is no image of the file: remove it'),
    'unknown-category': ('error', 'its category_id is none of the categories: the object is dropped silently'),
    'missing-class': ('error', 'a class of the config is no category of the file: correct metainfo.classes'),
    'degenerate-box': ('error', 'no box, or less than a pixel wide or high: the object is dropped silently'),
    'box-outside-image': ('error', 'more than a pixel over the edge: cut it, or correct the coordinates'),
    'broken-polygon': ('error', 'fewer than three points, an odd number of values, or values that are no positions'),
    'broken-rle': ('error', 'its runs do not add up to height times width of the image: encode the mask anew'),
    'rle-without-poly2mask': ('error', 'LoadAnnotations(poly2mask=False) drops every object with an RLE mask'),
    'missing-label-map': ('error', 'no label map: get it, or remove the image'),
    'unreadable-label-map': ('error', 'the label map cannot be decoded: get it anew'),
    'label-size-mismatch': ('error', 'image and label map differ in size'),
    'label-out-of-range': ('error', 'a label that is no class: set reduce_zero_label, the classes, or mend the file'),
    'leakage': ('error', 'the same image is in training and evaluation: remove it from one of them'),
    'unused-category': ('note', 'categories that the config does not train'),
    'empty-image': ('note', 'no objects; left out of the training unless filter_empty_gt=False'),
    'unchecked': ('note', 'a data set of this type is only checked for its image files'),
}


@dataclass(frozen=True)
class Finding:
    """One defect.

    Args:
        kind (str): Key of ``KINDS``.
        split (str): ``'train'``, ``'val'`` or ``'test'``.
        where (str): The file, or ``'annotation <id>'`` and the like.
        detail (str): What is wrong with it.
    """

    kind: str
    split: str
    where: str
    detail: str = ''

    @property
    def level(self) -> str:
        """``'error'`` or ``'note'``."""
        return KINDS[self.kind][0]
