"""What the config of a model says about its two ends: the channels of images, and the classes of its heads."""

from __future__ import annotations

from typing import Any

# Branches that tell other classes apart than those of the data set: object or not, kinds of background, persons.
OTHER_CLASSES = ('rpn_head', 'semantic_head', 'reid')


def input_channels(model: dict[str, Any]) -> int:
    """Channels of the images that a model takes: ``in_channels`` of its backbone, 3 if it does not say.

    Args:
        model (dict): Config of a model, one with another around it (``module`` of test-time augmentation) included.

    Example:
        >>> input_channels(dict(type='FCOS', backbone=dict(type='S6LAResNet', depth=18, in_channels=4)))
        4
    """
    while 'backbone' not in model and isinstance(model.get('module'), dict):
        model = model['module']
    return (model.get('backbone') or {}).get('in_channels', 3)


def classes_of_heads(model: Any) -> int:
    """The largest number of classes of a model's heads, boxes, masks or pixels; 0 if its config names none.

    Args:
        model (dict): Config of a model, or of a part of one.

    Example:
        >>> classes_of_heads(dict(type='FasterRCNN', roi_head=dict(bbox_head=[dict(num_classes=7)] * 3)))
        7
    """
    if isinstance(model, (list, tuple)):
        return max(map(classes_of_heads, model), default=0)
    if not isinstance(model, dict):
        return 0
    own = model.get('num_classes')
    panoptic = model.get('num_things_classes'), model.get('num_stuff_classes')
    counts = [own if isinstance(own, int) else 0, sum(n for n in panoptic if isinstance(n, int))]
    parts = (value for key, value in model.items() if key not in OTHER_CLASSES)
    return max([*counts, *map(classes_of_heads, parts)])


def describe_class_names(classes: Any, number: int, source: str) -> str:
    """A sentence on the class names in a checkpoint, and what is wrong with them.

    Args:
        classes (Sequence[str]): The names, none if there are none.
        number (int): Classes of the heads, 0 if it is not known.
        source (str): The file.

    Example:
        >>> describe_class_names(('cat', 'dog'), 3, 'a.pth')
        'a.pth names 2 classes (cat, dog), but the heads of the model have 3'
    """
    classes = list(map(str, classes))
    if not classes:
        return f'{source} names no classes'
    shown = ', '.join(classes[:6]) + (', ...' if len(classes) > 6 else '')
    plural = 'es' if len(classes) > 1 else ''
    text = f'{source} names {len(classes)} class{plural} ({shown})'
    return text if number in (0, len(classes)) else f'{text}, but the heads of the model have {number}'
