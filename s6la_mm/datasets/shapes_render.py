"""Draws one picture of the shapes data set: textured background, overlapping objects, their visible masks."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')

MIN_OBJECTS, MAX_OBJECTS = 2, 7
# Diameter of the circle around an object, as a fraction of the image side (24 to 92 pixels at 160).
MIN_DIAMETER, MAX_DIAMETER = 24 / 160, 92 / 160
# An object is a fair target only while this fraction of its whole area (outside the image too) is visible.
MIN_VISIBLE = 0.4
# A piece that an occluder cuts off must be at least this part of the visible area, else it is only a crumb.
MIN_PIECE = 0.08
# Standard deviation of a class's hues; the centres of neighbouring classes are 1/6 of the circle apart.
HUE_SPREAD = 0.06
SUPERSAMPLING = 4
ATTEMPTS_PER_OBJECT = 30


def _outline(name: str) -> list[np.ndarray]:
    """Closed outlines, each (N, 2), of a class inside the unit circle; a second outline cuts a hole."""

    def around(count: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
        angles = np.arange(count) * (2 * np.pi / count)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, count)[:, None]

    if name == 'circle':
        return [around(64)]
    if name == 'ring':
        return [around(64), 0.55 * around(64)]
    if name == 'square':
        return [around(4)]
    if name == 'triangle':
        return [around(3)]
    if name == 'star':
        return [around(10, (1.0, 0.45))]
    # A cross: one arm (its right-hand half) turned four times.
    arm = np.array([[0.94, -0.34], [0.94, 0.34], [0.34, 0.34]])
    turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return [np.concatenate([arm @ turn.T for turn in turns])]


def _area(points: np.ndarray) -> float:
    """Area inside one outline (shoelace formula), in the square of its unit."""
    x, y = points.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def _place(rng: np.random.Generator, name: str, size: int, near: tuple | None) -> tuple[list[np.ndarray], tuple]:
    """Outlines in pixels of a randomly sized, stretched, turned and placed object, and (x, y, radius).

    Args:
        rng (np.random.Generator): Source of all randomness.
        name (str): Class name.
        size (int): Image side in pixels.
        near (tuple, optional): (x, y, radius) of an object to overlap with, or None to place it anywhere.
    """
    radius = 0.5 * size * np.exp(rng.uniform(np.log(MIN_DIAMETER), np.log(MAX_DIAMETER)))
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle = rng.uniform(0, 2 * np.pi)
    if near is None:
        centre = rng.uniform(0.08, 0.92, size=2) * size
    else:
        towards = rng.uniform(0, 2 * np.pi)
        distance = rng.uniform(0.5, 1.0) * (radius + near[2])
        centre = np.array(near[:2]) + distance * np.array([np.cos(towards), np.sin(towards)])
        centre = np.clip(centre, 0.02 * size, 0.98 * size)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = radius * np.array([stretch, 1 / stretch])
    return [outline * scale @ turn.T + centre for outline in _outline(name)], (*centre, radius)


def _coverage(outlines: list[np.ndarray], size: int) -> np.ndarray:
    """How much of each pixel the object covers: (size, size) float32 in 0..1."""
    canvas = np.zeros((size * SUPERSAMPLING, size * SUPERSAMPLING), np.uint8)
    # fillPoly puts a vertex on the centre of a pixel, hence the half; two outlines make a hole (even-odd rule).
    fixed_point = 4
    vertices = [np.round((o * SUPERSAMPLING - 0.5) * 2**fixed_point).astype(np.int32) for o in outlines]
    cv2.fillPoly(canvas, vertices, 255, shift=fixed_point)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _field(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random pattern, (size, size) float32 in -1..1: noise, gradient, stripes or checks of any frequency."""
    kind = rng.choice(['noise', 'gradient', 'stripes', 'checks'])
    if kind == 'noise':
        cells = round(np.exp(rng.uniform(np.log(3), np.log(32))))
        coarse = rng.uniform(-1, 1, size=(cells, cells)).astype(np.float32)
        return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), -1, 1)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if kind == 'gradient':
        return np.clip(along * 1.4, -1, 1)
    pulsation = 2 * np.pi * np.exp(rng.uniform(np.log(2), np.log(20)))
    stripes = np.sin(pulsation * along + rng.uniform(0, 2 * np.pi))
    return stripes if kind == 'stripes' else stripes * np.sin(pulsation * across)


def _texture(rng: np.random.Generator, size: int, colour: np.ndarray, patterns: int, contrast: float) -> np.ndarray:
    """A (size, size, 3) float32 surface of one mean colour (0..255) under some patterns of random tint."""
    surface = np.broadcast_to(colour, (size, size, 3)).astype(np.float32)
    for _ in range(patterns):
        tint = rng.uniform(-1, 1, size=3) * contrast
        surface = surface + _field(rng, size)[..., None] * tint.astype(np.float32)
    return surface


def _colour(rng: np.random.Generator, others: list[np.ndarray], label: int | None = None) -> np.ndarray:
    """A random colour, (3,) in 0..255 in BGR order, well apart from the others.

    Colour is a cue for the class, as it is in photographs, but does not give it away: the hues of a class scatter
    around a centre of its own and overlap with those of its neighbours on the colour circle.
    """

    def draw() -> np.ndarray:
        hue = rng.uniform() if label is None else rng.normal(label / len(CLASSES), HUE_SPREAD) % 1.0
        return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.3, 1.0), rng.uniform(0.3, 1.0)))

    tries = [draw() for _ in range(5)]
    return max(tries, key=lambda c: min((float(np.linalg.norm(c - o)) for o in others), default=0.0))


def _is_fair(visible: np.ndarray, whole_area: float) -> bool:
    """Whether enough of an object is visible to be annotated, and in pieces large enough to be told apart."""
    area = int(visible.sum())
    if area < MIN_VISIBLE * whole_area:
        return False
    _, _, stats, _ = cv2.connectedComponentsWithStats(visible.astype(np.uint8), connectivity=8)
    return int(stats[1:, cv2.CC_STAT_AREA].min()) >= MIN_PIECE * area


def render_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one picture.

    Objects are painted one over the other. A new object that would leave too little of an earlier one (or show
    too little of itself) is drawn again elsewhere, so that everything painted is also annotated.

    Args:
        rng (np.random.Generator): Source of all randomness: the same state gives the same picture.
        size (int): Side of the square picture in pixels.

    Returns:
        tuple: The picture, (size, size, 3) uint8 in BGR order, and for each object its label (index into ``CLASSES``)
        and its visible mask, (size, size) bool; the masks are disjoint.
    """
    colours = [_colour(rng, [])]
    picture = _texture(rng, size, colours[0], patterns=2, contrast=25)
    owner = np.full((size, size), -1, np.int32)
    labels: list[int] = []
    places: list[tuple] = []
    areas: list[float] = []

    for _ in range(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)):
        label = int(rng.integers(len(CLASSES)))
        for _ in range(ATTEMPTS_PER_OBJECT):
            near = places[rng.integers(len(places))] if places and rng.uniform() < 0.4 else None
            outlines, place = _place(rng, CLASSES[label], size, near)
            coverage = _coverage(outlines, size)
            whole_area = _area(outlines[0]) - sum(_area(hole) for hole in outlines[1:])
            after = np.where(coverage >= 0.5, len(labels), owner)
            affected = {
                len(labels): whole_area,
                **{j: areas[j] for j in np.unique(owner[coverage >= 0.5]) if j >= 0},
            }
            if all(_is_fair(after == j, area) for j, area in affected.items()):
                break
        else:
            continue
        colour = _colour(rng, colours, label)
        surface = _texture(rng, size, colour, patterns=1, contrast=15)
        picture += (surface - picture) * coverage[..., None]
        owner = after
        colours.append(colour)
        labels.append(label)
        places.append(place)
        areas.append(whole_area)

    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    picture = picture * (1 + strength * (np.cos(angle) * x + np.sin(angle) * y))[..., None].astype(np.float32)
    picture = cv2.GaussianBlur(picture, (5, 5), rng.uniform(0.2, 0.8))
    picture = picture + rng.normal(0, rng.uniform(1, 4), size=picture.shape)
    picture = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    return picture, [(label, owner == j) for j, label in enumerate(labels)]
