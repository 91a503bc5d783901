"""Where do the labels of points go, so that none covers another, a point or a curve?

Points of one series that lie on each other share a label ("-200 … -50"). Each label then takes the
nearest free place around its point; a thin line leads to those that had to go far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

_SAME = 9.0  # pixels: closer points share a label
_RINGS = (12.0, 18.0, 26.0, 36.0, 50.0, 66.0)  # points (1/72 inch) from the point to its label
_ANGLES = (90, 270, 45, 135, 315, 225, 0, 180)  # degrees, in order of preference
_MARGIN = 3.0  # pixels of air around a label
_STEP = 4.0  # pixels between the places on a curve that a label keeps clear of


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one curve with a label each."""

    points: Sequence[tuple[float, float]]
    """In data coordinates, in the order of the curve."""
    labels: Sequence[str]
    """One per point; an empty one is not drawn."""
    colour: str


def place_labels(
    axes: Axes,
    series: Sequence[Series],
    *,
    curves: Sequence[Sequence[tuple[float, float]]] = (),
    fontsize: float = 7,
) -> list[Annotation]:
    """Draw the labels of all series; returns them. Call last: limits and layout must be final.

    Args:
        curves: polylines in data coordinates that labels keep clear of.
        fontsize: in points.
    """
    canvas = cast(Any, axes.figure.canvas)
    canvas.draw()  # settles the layout, on which pixels depend
    renderer = canvas.get_renderer()
    lines = [_dense(axes.transData.transform(curve)) for curve in curves if len(curve)]
    dots = [axes.transData.transform(one.points) for one in series if one.points]
    keep_clear = np.concatenate([*lines, *dots]) if lines or dots else np.empty((0, 2))
    legend = axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent(renderer)]
    placed = []
    for one in series:
        for (x, y), text in _merged(axes, one):
            best = _best(axes, renderer, (x, y), text, one.colour, fontsize, keep_clear, taken)
            placed.append(best)
            taken.append(best.get_window_extent(renderer))
    return placed


def _merged(axes: Axes, one: Series) -> list[tuple[tuple[float, float], str]]:
    """(point, label), points that lie on each other together."""
    groups: list[tuple[tuple[float, float], list[str]]] = []
    for point, label in zip(one.points, one.labels, strict=True):
        if not label:
            continue
        here = axes.transData.transform(point)
        for there, labels in groups:
            if math.dist(here, axes.transData.transform(there)) < _SAME:
                labels.append(label)
                break
        else:
            groups.append((point, [label]))
    return [(point, _joined(labels)) for point, labels in groups]


def _joined(labels: Sequence[str]) -> str:
    """ "β -200", "β -100", "β -50" as "β -200 … -50"."""
    if len(labels) == 1:
        return labels[0]
    sign = ", " if len(labels) == 2 else " … "
    return f"{labels[0]}{sign}{labels[-1].split()[-1]}"


def _best(
    axes: Axes,
    renderer: Any,
    point: tuple[float, float],
    text: str,
    colour: str,
    fontsize: float,
    keep_clear: np.ndarray,
    taken: Sequence[Bbox],
) -> Annotation:
    """The label at the nearest place that covers nothing, or else the least."""
    style: dict[str, Any] = {"fontsize": fontsize, "color": colour, "ha": "center", "va": "center"}
    style |= {"textcoords": "offset points"}
    frame = axes.get_window_extent(renderer)
    least, chosen = math.inf, (0.0, _RINGS[0])
    probe = axes.annotate(text, point, xytext=chosen, **style)
    for ring in _RINGS:
        for angle in _ANGLES:
            radians = math.radians(angle)
            # a label is wide: sideways it has to go further
            width = probe.get_window_extent(renderer).width * 36 / axes.figure.dpi
            offset = (math.cos(radians) * (ring + 0.7 * width), math.sin(radians) * ring)
            probe.set_position(offset)
            box = probe.get_window_extent(renderer).padded(_MARGIN)
            cost = _cost(box, frame, keep_clear, taken)
            if cost < least:
                least, chosen = cost, offset
            if cost == 0:
                break
        if least == 0:
            break
    probe.remove()
    if math.hypot(*chosen) > _RINGS[1]:
        style["arrowprops"] = {"arrowstyle": "-", "lw": 0.4, "color": colour, "shrinkB": 3}
    return axes.annotate(text, point, xytext=chosen, **style)


def _cost(box: Bbox, frame: Bbox, keep_clear: np.ndarray, taken: Sequence[Bbox]) -> float:
    """How much a label at `box` covers: labels weigh most, then leaving the axes, then curves."""
    inside = (
        (keep_clear[:, 0] > box.x0)
        & (keep_clear[:, 0] < box.x1)
        & (keep_clear[:, 1] > box.y0)
        & (keep_clear[:, 1] < box.y1)
    )
    over = sum(box.overlaps(other) for other in taken)
    out = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return 1000.0 * over + 300.0 * out + float(inside.sum())


def _dense(corners: np.ndarray) -> np.ndarray:
    """Points along a polyline, in pixels."""
    parts = [corners[:1]]
    for start, end in pairwise(corners):
        count = max(2, int(math.dist(start, end) / _STEP) + 1)
        parts.append(np.linspace(start, end, count)[1:])
    return np.concatenate(parts)
