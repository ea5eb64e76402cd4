"""What a check can find, how bad it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

# kind: (level, what it means and what to do). An error stops a training or an evaluation, or drops or teaches what
# nobody meant; a note is for information.
KINDS = {
    'missing-file': ('error', 'an annotation file or folder is not there: correct the path'),
    'broken-file': ('error', 'an annotation file cannot be read: get it anew'),
    'cannot-build': ('error', 'the data set cannot be built: correct its entry in the config'),
    'evaluator-file': ('error', 'the evaluation reads another file than the data set, and will stop: correct ann_file'),
    'cannot-load': ('error', 'the data set stops there as it reads its annotations: mend the entry'),
    'no-samples': ('error', 'the data set loads nothing'),
    'no-objects': ('error', 'no object or labelled pixel of any class: there is nothing to learn or to measure'),
    'wrong-suffix': ('error', 'the case of the suffix is another one, so the file is left out: rename it'),
    'classes-no-list': ('error', 'the class names are no list: write it with a comma, or name a file that is there'),
    'class-order': ('error', 'names will be exchanged: put the classes in the order of the categories in the file'),
    'missing-class': ('error', 'a class of the config is no category of the file: correct metainfo.classes'),
    'misspelt-class': ('error', 'upper and lower case differ from a class, so its objects are dropped: correct one'),
    'missing-image': ('error', 'the file is not there: get it, or remove its entry'),
    'unreadable-image': (
        'error',
        "no image, or none that the config's loader can read: get it anew, or convert it",
    ),
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
    'missing-key': ('error', 'the training or the evaluation stops there: add the key to all annotations'),
    'zero-area': ('error', "an 'area' of zero: the object is dropped silently"),
    'ignored-object': ('error', "'ignore' makes it background to the training, not to the evaluation: use iscrowd"),
    'degenerate-box': ('error', 'no box, or less than a pixel wide or high: the object is dropped silently'),
    'box-outside-image': ('error', 'more than a pixel over the edge: cut it, or correct the coordinates'),
    'missing-mask': ('error', 'no segmentation, at which what loads masks stops: add it, or remove the object'),
    'broken-polygon': ('error', 'fewer than three points, an odd number of values, or values that are no positions'),
    'broken-rle': ('error', 'its runs do not add up to height times width of the image: encode the mask anew'),
    'rle-without-poly2mask': ('error', 'LoadAnnotations(poly2mask=False) drops every object with an RLE mask'),
    'missing-label-map': ('error', 'no label map: get it, or remove the image'),
    'unreadable-label-map': ('error', 'the label map cannot be decoded: get it anew'),
    'label-size-mismatch': ('error', 'image and label map differ in size'),
    'label-out-of-range': ('error', 'a label that is no class: set reduce_zero_label, the classes, or mend the file'),
    'leakage': ('error', 'the same image is in training and evaluation: remove it from one of them'),
    'class-without-objects': ('note', 'a class of which there is no object, pixel or image'),
    'unused-category': ('note', 'categories that the config does not train'),
    'no-annotations': ('note', 'a test set without objects: predictions can be written, not measured'),
    'empty-image': ('note', 'no objects; left out of the training if filter_cfg says filter_empty_gt'),
    'left-out': ('note', 'left out of the training by filter_cfg'),
    'nothing-labelled': ('note', 'every pixel of the label map is ignored'),
    'other-suffix': ('note', 'image files that the data set does not load'),
    'missing-package': ('note', 'a package that the training will need; the files were read without it'),
    'unchecked': ('note', 'a data set of this type is only checked for what it gives of image files and objects'),
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


def in_words(error: BaseException) -> str:
    """The first line of what a library says, with the kind of error where it does not say it itself."""
    if isinstance(error, KeyError) and error.args:
        key = error.args[0]  # of a registry it is a sentence
        return key.partition('. ')[0] if ' ' in str(key) else f'no key {key!r}'
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__
