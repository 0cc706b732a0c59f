"""Small charts as inline SVG, coloured by the page's stylesheet.

In: labels and numbers. Out: one `<figure>` a chart, 316 units wide, so that text keeps its size in
a column of a wide page and on a phone. What a chart shows is also in its aria-label.

>>> chart = bars("film", [Bar("crossrec", 0.2, "model"), Bar("popularity", 0.1, "base")], limit=0.4)
>>> chart.count("<rect"), "film: crossrec .2000, popularity .1000" in chart
(2, True)
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import NamedTuple

from crossrec.evaluate.markup import Markup, count, measure, tag

WIDTH = 316
"""Units, as wide as a phone's screen is in CSS pixels, less its margins."""
LABEL_WIDTH = 134
"""What "popularity, 30 days" takes in 12.5 px sans-serif, and its gap."""
ROW_HEIGHT = 24


class Bar(NamedTuple):
    """A labelled value; the kind, a class of the stylesheet, chooses the colour."""

    label: str
    value: float
    kind: str


def bars(title: str, rows: Sequence[Bar], limit: float, note: str = "") -> Markup:
    """Return horizontal bars from 0 to `limit`, each with its label and its value."""
    scale = (WIDTH - LABEL_WIDTH - 48) / limit if limit > 0 else 0.0
    parts = []
    for place, row in enumerate(rows):
        top, end = place * ROW_HEIGHT, LABEL_WIDTH + row.value * scale
        label = row.label if len(row.label) <= 20 else row.label[:15] + "…"
        tip = tag("title", f"{row.label}: {measure(row.value)}")
        name = tag("text", label, x=LABEL_WIDTH - 8, y=top + 16, class_="name")
        shape = tag(
            "rect",
            x=LABEL_WIDTH,
            y=top + 4,
            width=_trim(end - LABEL_WIDTH),
            height=ROW_HEIGHT - 8,
            rx=2,
        )
        value = tag("text", measure(row.value), x=_trim(end + 6), y=top + 16)
        parts.append(tag("g", tip, name, shape, value, class_=f"bar {row.kind}"))
    height = len(rows) * ROW_HEIGHT
    axis = _line(LABEL_WIDTH, 0, LABEL_WIDTH, height, "axis")
    said = ", ".join(f"{row.label} {measure(row.value)}" for row in rows)
    return _figure(title, note, height, f"{title}: {said}", [parts, axis])


def line(title: str, points: Sequence[tuple[int, float]], marked: int | None = None) -> Markup:
    """Return a line over epochs between its lowest and highest value; `marked` was chosen."""
    top, bottom, left, right = 12, 130, 46, WIDTH - 16
    epochs, values = [x for x, _ in points], [y for _, y in points]
    low, high = min(values), max(values)
    across = (right - left) / max(max(epochs) - min(epochs), 1)
    up = (bottom - top) / (high - low) if high > low else 0.0

    def place(epoch: int, value: float) -> tuple[float, float]:
        return _trim(left + (epoch - min(epochs)) * across), _trim(bottom - (value - low) * up)

    parts = []
    for value in sorted({low, (low + high) / 2, high}):
        _, y = place(epochs[0], value)
        parts.append(_line(left - 4, y, right, y, "grid"))
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
    return _figure(title, note, bottom + 26, said, parts)


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
        _line(left, bottom, right, bottom, "axis"),
    ]
    if cut is not None and first < cut < last + timedelta(days=7):
        x = _trim(left + (cut - first).days / 7 * width)
        parts.append(_line(x, 4, x, bottom, "cut"))
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
    return _figure(title, note, bottom + 22, said, parts)


def grid(figures: Sequence[Markup]) -> Markup:
    """Return charts side by side, as many as the screen has room for; two and four in pairs."""
    return tag("div", figures, class_="charts two" if len(figures) in (2, 4) else "charts")


def _figure(title: str, note: str, height: float, said: str, parts: Sequence[object]) -> Markup:
    """Return a chart under its caption; the SVG is one picture with one description."""
    picture = tag("svg", parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=said)
    caption = tag("figcaption", tag("b", title), " ", tag("small", note) if note else None)
    return tag("figure", caption, picture)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line of a kind that the stylesheet knows."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def _trim(value: float) -> float:
    """Return a coordinate without digits that no screen shows."""
    return round(value, 1)
