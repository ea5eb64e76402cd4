"""How many objects, pixels or images there are of each class, and the findings and the table of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .findings import Finding


@dataclass
class ClassCounts:
    """What there is of each class in the data sets of a split.

    Args:
        split (str): Name of the split.
        classes (list[str]): The names, in the order of the labels; of several data sets all.
        unit (str): What is counted besides images: ``'objects'``, ``'pixels'``, or nothing.
        amounts (Counter): Objects or pixels by name.
        images (Counter): Images by name.
        ignored (Counter): Pixels that do not count, by label.
        annotated (bool): Whether there should be any.
    """

    split: str
    classes: list[str] = field(default_factory=list)
    unit: str = ''
    amounts: Counter = field(default_factory=Counter)
    images: Counter = field(default_factory=Counter)
    ignored: Counter = field(default_factory=Counter)
    annotated: bool = False

    def add_classes(self, classes: Sequence[str]) -> None:
        """Adds the names of a data set."""
        self.classes += [name for name in classes if name not in self.classes]

    def add(self, classes: Sequence[str], labels: dict[int, int], unit: str) -> None:
        """Adds an image.

        Args:
            classes (Sequence[str]): The names of its data set.
            labels (dict[int, int]): How many objects or pixels have a label; those that are no class do not count.
            unit (str): What they are.
        """
        self.unit = unit
        for label, amount in labels.items():
            if 0 <= label < len(classes) and amount:
                self.amounts[classes[label]] += amount
                self.images[classes[label]] += 1

    def add_entries(self, classes: Sequence[str], entries: Sequence[dict]) -> Iterator[tuple[dict, str]]:
        """Adds what a data set gives of boxes and labels of images; yields labels that are no class."""
        for entry in entries:
            if 'instances' in entry:
                labels = [i.get('bbox_label') for i in entry['instances'] if not i.get('ignore_flag')]
                unit = 'objects'
            elif 'gt_label' in entry:
                labels, unit = np.ravel(entry['gt_label']).tolist(), ''
            else:
                continue
            counts = Counter(int(label) for label in labels if isinstance(label, (int, np.integer)))
            self.annotated |= 'gt_label' in entry and bool(counts)
            self.add(classes, counts, unit)
            for label in counts:
                if classes and not 0 <= label < len(classes):
                    yield entry, f'label {label}, there are {len(classes)} classes'

    def findings(self) -> Iterator[Finding]:
        """Classes of which there is nothing."""
        if not self.annotated or not self.classes:
            return
        if not self.images:
            if self.split == 'test':
                yield Finding('no-annotations', self.split, 'all of its images')
            else:
                detail = f'0 {self.unit or "images"} of {", ".join(self.classes[:5])}'
                yield Finding('no-objects', self.split, 'all of its images', detail)
            return
        others = ', '.join(
            f'{pixels:,} pixels are {label}, which is ignored' for label, pixels in self.ignored.items() if pixels
        )
        for name in self.classes:
            if not self.images[name]:
                yield Finding('class-without-objects', self.split, f'class {name!r}', others)


def class_table(splits: Sequence[ClassCounts]) -> list[str]:
    """The lines of a table with a row for each class and two columns for each split; none if nothing was counted.

    Example:
        >>> counts = ClassCounts('train', ['cat', 'dog'])
        >>> counts.add(['cat', 'dog'], {1: 3}, 'objects')
        >>> for line in class_table([counts]):
        ...     print(line)
        class  train objects  images
        cat                0       0
        dog                3       1
    """
    splits = [counts for counts in splits if counts.images]
    if not splits:
        return []
    columns = [['class', *dict.fromkeys(name for counts in splits for name in [*counts.classes, *counts.images])]]
    for counts in splits:
        head = f'{counts.split} {counts.unit or "images"}'
        if counts.unit:
            columns.append([head, *(f'{counts.amounts[name]:,}' for name in columns[0][1:])])
            head = 'images'
        columns.append([head, *(f'{counts.images[name]:,}' for name in columns[0][1:])])
    first, *others = ([max(map(len, column))] + column for column in columns)
    return [
        f'{name:{first[0]}}' + ''.join(f'  {column[row]:>{column[0]}}' for column in others)
        for row, name in enumerate(first[1:], 1)
    ]
