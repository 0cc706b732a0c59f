"""Charts over time and over ordered bands, as inline SVG: learning curves, weeks, series.

In: numbers by epoch, week or band. Out: figures as in `crossrec.evaluate.charts`.

>>> "Loss: from 2 in epoch 1 to 1.5 in 2" in line("Loss", [(1, 2.0), (2, 1.5)])
True
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import NamedTuple

from crossrec.evaluate.charts import WIDTH, figure, straight, trim
from crossrec.evaluate.markup import Markup, count, measure, tag


class Series(NamedTuple):
    """A line over the bands; values in their order, None as a gap; the kind is a class."""

    label: str
    values: Sequence[float | None]
    kind: str


class Point(NamedTuple):
    """A place on a curve between two measures, and what is written beside it."""

    x: float
    y: float
    label: str


def line(title: str, points: Sequence[tuple[int, float]], marked: int | None = None) -> Markup:
    """Return a line over epochs between its lowest and highest value; `marked` was chosen."""
    top, bottom, left, right = 12, 130, 46, WIDTH - 16
    epochs, values = [x for x, _ in points], [y for _, y in points]
    low, high = min(values), max(values)
    across = (right - left) / max(max(epochs) - min(epochs), 1)
    up = (bottom - top) / (high - low) if high > low else 0.0

    def place(epoch: int, value: float) -> tuple[float, float]:
        return trim(left + (epoch - min(epochs)) * across), trim(bottom - (value - low) * up)

    parts = []
    for value in sorted({low, (low + high) / 2, high}):
        _, y = place(epochs[0], value)
        parts.append(straight(left - 4, y, right, y, "grid"))
        parts.append(tag("text", f"{value:.3g}", x=left - 8, y=y + 4, class_="tick end"))
    # A label for every epoch, or for every second, third, ... so that at most six are written.
    for epoch in range(min(epochs), max(epochs) + 1, (max(epochs) - min(epochs)) // 6 + 1):
        x, _ = place(epoch, low)
        parts.append(tag("text", str(epoch), x=x, y=bottom + 20, class_="tick mid"))
    path = " ".join(f"{x:g},{y:g}" for x, y in (place(*point) for point in points))
    parts.append(tag("polyline", points=path, class_="curve"))
    for epoch, value in points:
        x, y = place(epoch, value)
        tip = tag("title", f"epoch {epoch}: {value:.4g}")
        size = 5 if epoch == marked else 2.5
        parts.append(tag("circle", tip, cx=x, cy=y, r=size, class_="dot"))
    said = f"{title}: from {values[0]:.4g} in epoch {epochs[0]} to {values[-1]:.4g} in {epochs[-1]}"
    chosen = dict(points).get(marked) if marked is not None else None
    if chosen is not None:
        said += f"; epoch {marked} was chosen, {chosen:.4g}"
    note = "by epoch" if chosen is None else f"epoch {marked} chosen"
    return figure(title, note, bottom + 26, said, parts)


def series(title: str, bands: Sequence[str], lines: Sequence[Series], note: str = "") -> Markup:
    """Return lines over ordered bands from 0 up, each with its own mark and its legend above.

    Args:
        title: what the figure is called.
        bands: names of the bands, at least one.
        lines: at least one, each with as many values as there are bands.
        note: said beside the title.
    """
    top, bottom, left, right = 34, 142, 40, WIDTH - 14
    limit = max([value for shown in lines for value in shown.values if value] or [1.0])
    across = (right - left) / len(bands)

    def place(band: int, value: float) -> tuple[float, float]:
        return trim(left + (band + 0.5) * across), trim(bottom - (bottom - top) * value / limit)

    parts = []
    for value in (0.0, limit / 2, limit):
        y = place(0, value)[1]
        parts.append(straight(left, y, right, y, "grid"))
        parts.append(tag("text", _tick(value), x=left - 6, y=y + 4, class_="tick end"))
    for band, name in enumerate(bands):
        x = place(band, 0.0)[0]
        parts.append(tag("text", name, x=x, y=bottom + 19, class_="tick mid"))
    begin = 0.0
    for shown in lines:
        parts += [
            tag("path", d=f"M{begin:g} 9h22", class_=f"series {shown.kind}"),
            _mark(shown.kind, begin + 11, 9),
            tag("text", shown.label, x=begin + 28, y=13, class_="legend"),
        ]
        begin += 40 + 7.2 * len(shown.label)
    said: list[str] = []
    # The first line is drawn last, over the others.
    for shown in reversed(lines):
        known = [(band, value) for band, value in enumerate(shown.values) if value is not None]
        path = " ".join(f"{x:g},{y:g}" for x, y in (place(*point) for point in known))
        marks = [
            _mark(shown.kind, *place(band, value), f"{bands[band]}: {shown.label} {measure(value)}")
            for band, value in known
        ]
        parts.append(tag("g", tag("polyline", points=path, class_=f"series {shown.kind}"), marks))
        told = ", ".join(f"{bands[band]} {measure(value)}" for band, value in known)
        said.insert(0, f"{shown.label}: {told}")
    return figure(title, note, bottom + 24, f"{title}. {'; '.join(said)}", parts)


def against(title: str, points: Sequence[Point], axis: str, note: str = "") -> Markup:
    """Return a measure against another one: a line through points, each with its label.

    Args:
        title: what the figure is called, and its upright axis, from 0.
        points: at least one, in the order of the line.
        axis: what is measured from left to right.
        note: said beside the title.
    """
    top, bottom, left, right = 22, 142, 40, WIDTH - 22
    limit = max(point.y for point in points) or 1.0
    low, high = min(point.x for point in points), max(point.x for point in points)
    across = (right - left - 24) / (high - low) if high > low else 0.0

    def place(point: Point) -> tuple[float, float]:
        x = left + 12 + (point.x - low) * across
        return trim(x), trim(bottom - (bottom - top) * point.y / limit)

    parts = []
    for value in (0.0, limit / 2, limit):
        y = trim(bottom - (bottom - top) * value / limit)
        parts.append(straight(left, y, right, y, "grid"))
        parts.append(tag("text", _tick(value), x=left - 6, y=y + 4, class_="tick end"))
    for value in sorted({low, high}):
        x = trim(left + 12 + (value - low) * across)
        parts.append(tag("text", _tick(value), x=x, y=bottom + 17, class_="tick mid"))
    parts.append(tag("text", axis, x=right, y=bottom + 34, class_="tick end"))
    places = [place(point) for point in points]
    path = " ".join(f"{x:g},{y:g}" for x, y in places)
    parts.append(tag("polyline", points=path, class_="series model"))
    told = [f"{point.label}: {measure(point.y)} at {measure(point.x)}" for point in points]
    for point, (x, y), tip in zip(points, places, told, strict=True):
        parts.append(_mark("model", x, y, tip))
        parts.append(tag("text", point.label, x=x, y=trim(y - 8), class_="tick mid"))
    return figure(title, note, bottom + 40, f"{title} {note}. {'; '.join(told)}", parts)


def _tick(value: float) -> str:
    """Return a figure beside its grid line in two digits.

    >>> _tick(0.0), _tick(0.0815), _tick(0.3)
    ('0', '.082', '.3')
    """
    return f"{value:.2g}".removeprefix("0") or "0"


def _mark(kind: str, x: float, y: float, tip: str = "") -> Markup:
    """Return the mark of a point: a disc for the model, a square for all else."""
    said = tag("title", tip) if tip else None
    if kind == "model":
        return tag("circle", said, cx=x, cy=y, r=4, class_=f"mark {kind}")
    return tag("rect", said, x=trim(x - 3.5), y=trim(y - 3.5), width=7, height=7, class_="mark")


def weeks(title: str, events: dict[date, int], cut: date | None = None, note: str = "") -> Markup:
    """Return columns of events by week, weeks without events as gaps; a line at `cut`.

    Args:
        title: what the figure is called.
        events: events by the Monday of their week, at least one.
        cut: where the judged days start, if within these weeks.
        note: said beside the title.
    """
    top, bottom, left, right = 24, 98, 2, WIDTH - 2
    first, last = min(events), max(events)
    weeks_shown = (last - first).days // 7 + 1
    peak_week = max(events, key=lambda week: (events[week], week))
    width, peak = (right - left) / weeks_shown, max(events[peak_week], 1)
    # One path for all columns: thousands of weeks cost no thousands of elements.
    path = []
    for week, number in sorted(events.items()):
        x = left + (week - first).days // 7 * width
        y = bottom - (bottom - top) * number / peak
        path.append(
            f"M{x:.1f} {bottom}V{y:.1f}h{max(width - (1 if width > 4 else 0), 0.4):.1f}V{bottom}"
        )
    parts = [
        tag("path", d="".join(path), class_="columns"),
        straight(left, bottom, right, bottom, "axis"),
    ]
    if cut is not None and first < cut < last + timedelta(days=7):
        x = trim(left + (cut - first).days / 7 * width)
        parts.append(straight(x, 4, x, bottom, "cut"))
        parts.append(tag("text", "judged from here", x=x - 6, y=13, class_="tick end"))
    parts.append(tag("text", first.isoformat(), x=left, y=bottom + 17, class_="tick"))
    if weeks_shown > 1:
        parts.append(tag("text", last.isoformat(), x=right, y=bottom + 17, class_="tick end"))
    said = (
        f"{title}: events by week from {first} to {last}, most in the week of {peak_week}, "
        f"{count(events[peak_week])}"
    )
    gaps = weeks_shown - sum(1 for number in events.values() if number)
    if gaps:
        said += f"; {count(gaps)} week{'s' if gaps > 1 else ''} without events"
    return figure(title, note, bottom + 22, said, parts)
