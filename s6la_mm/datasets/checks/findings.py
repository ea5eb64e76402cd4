"""What a check can find, how bad it is, and what to do."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field

from ...common.files import write_atomically

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


@dataclass
class Report:
    """All findings of a config's data sets, and how much was looked at.

    Example:
        >>> report = Report(findings=[Finding('missing-image', 'train', 'a.jpg')], images=10, seconds=0.5)
        >>> report.has_errors
        True
        >>> print(report.text())
        error  missing-image   1  the file is not there: get it, or remove its entry
                                  train: a.jpg
        10 images in 0.5 s (20 images/s): 1 error
    """

    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0

    @property
    def has_errors(self) -> bool:
        """Whether one of the findings is an error."""
        return any(finding.level == 'error' for finding in self.findings)

    def text(self, examples: int = 3) -> str:
        """A table of the kinds with some examples of each.

        Args:
            examples (int): How many of each kind are named.
        """
        by_kind = defaultdict(list)
        for finding in self.findings:
            by_kind[finding.kind].append(finding)
        lines = []
        width = max((len(kind) for kind in by_kind), default=0)
        for kind, (level, advice) in KINDS.items():  # errors come first there
            found = by_kind.get(kind, [])
            if not found:
                continue
            lines.append(f'{level:5}  {kind:{width}}  {len(found):>2}  {advice}')
            indent = ' ' * (width + 13)
            for finding in found[:examples]:
                detail = f': {finding.detail}' if finding.detail else ''
                lines.append(f'{indent}{finding.split}: {finding.where}{detail}')
            if len(found) > examples:
                lines.append(f'{indent}... and {len(found) - examples} more')
        errors = sum(finding.level == 'error' for finding in self.findings)
        speed = f'{self.images / self.seconds:.0f} images/s' if self.seconds else 'no time measured'
        summary = 'no errors' if not errors else f'{errors} error{"s" if errors > 1 else ""}'
        return '\n'.join([*lines, f'{self.images} images in {self.seconds:.1f} s ({speed}): {summary}'])

    def write(self, path: str) -> None:
        """Writes everything as JSON.

        Args:
            path (str): The file; it appears when it is complete.

        Raises:
            OSError: If it cannot be written.
        """
        findings = [{'level': finding.level, **asdict(finding)} for finding in self.findings]
        content = dict(images=self.images, seconds=round(self.seconds, 3), findings=findings)
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False))
