"""Small charts as inline SVG, coloured by the page's stylesheet: bars, and leads with intervals.

In: labels and numbers. Out: one `<figure>` a chart, 316 units wide, so that text keeps its size in
a column of a wide page and on a phone. What a chart shows is also in its aria-label, and no
difference is told by colour alone.

>>> chart = bars("film", [Bar("crossrec", 0.2, "model"), Bar("popularity", 0.1, "base")], limit=0.4)
>>> chart.count("<rect"), "film: crossrec .2000, popularity .1000" in chart
(2, True)
"""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from crossrec.evaluate.judged import Interval
from crossrec.evaluate.markup import Markup, measure, signed, tag

WIDTH = 316
"""Units, as wide as a phone's screen is in CSS pixels, less its margins."""
LABEL_WIDTH = 142
"""What "item-kNN, all domains" takes in 12.5 px sans-serif, and its gap."""
LABEL_LENGTH = 21
VALUE_WIDTH = 48
ROW_HEIGHT = 24


class Bar(NamedTuple):
    """A labelled value; the kind, a class of the stylesheet, chooses the colour."""

    label: str
    value: float
    kind: str


class Lead(NamedTuple):
    """A labelled difference with its interval."""

    label: str
    interval: Interval


def bars(title: str, rows: Sequence[Bar | str], limit: float, note: str = "") -> Markup:
    """Return horizontal bars from 0 to `limit`, with label and value; a string is a heading."""
    scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / limit if limit > 0 else 0.0
    parts, top = [], 0
    for row in rows:
        if isinstance(row, str):
            top += 6 if top else 0
            parts.append(tag("text", row, x=0, y=top + 15, class_="heading"))
            top += ROW_HEIGHT - 2
            continue
        end = LABEL_WIDTH + row.value * scale
        tip = tag("title", f"{row.label}: {measure(row.value)}")
        shape = tag(
            "rect",
            x=LABEL_WIDTH,
            y=top + 4,
            width=trim(end - LABEL_WIDTH),
            height=ROW_HEIGHT - 8,
            rx=2,
        )
        value = tag("text", measure(row.value), x=trim(end + 6), y=top + 16)
        parts.append(tag("g", tip, _label(row.label, top), shape, value, class_=f"bar {row.kind}"))
        parts.append(straight(LABEL_WIDTH, top, LABEL_WIDTH, top + ROW_HEIGHT, "axis"))
        top += ROW_HEIGHT
    return figure(title, note, top, f"{title}: {_told(rows)}", parts)


def highest(rows: Sequence[Bar | str]) -> float:
    """Return the longest bar's value, 0 without bars."""
    return max((row.value for row in rows if isinstance(row, Bar)), default=0.0)


def leads(
    title: str, rows: Sequence[Lead], note: str = "", axis: tuple[float, float] = (0.0, 0.0)
) -> Markup:
    """Return differences as points on their intervals, from left (behind) to right (ahead).

    A full point stands where the interval leaves 0 out, a hollow one where the difference could be
    chance.

    Args:
        title: what the figure is called.
        rows: at least one, top first.
        note: said beside the title.
        axis: its ends, where several charts share it; wider where the rows need it.
    """
    low, high = reach_of(rows, axis)
    left, right = LABEL_WIDTH + 4, WIDTH - VALUE_WIDTH - 4
    scale = (right - left) / (high - low)

    def place(value: float) -> float:
        return trim(left + (value - low) * scale)

    bottom = len(rows) * ROW_HEIGHT
    parts = [straight(place(0.0), 0, place(0.0), bottom, "axis")]
    for row_place, row in enumerate(rows):
        top, interval = row_place * ROW_HEIGHT, row.interval
        tip = tag("title", f"{row.label}: {_in_full(interval)}")
        y = top + 12
        whisker = straight(place(interval.low), y, place(interval.high), y, "whisker")
        point = tag("circle", cx=place(interval.difference), cy=y, r=4.5, class_="point")
        value = tag("text", signed(interval.difference), x=WIDTH, y=top + 16, class_="end")
        kind = "ahead" if interval.is_ahead else "behind" if interval.is_behind else "chance"
        shown = (tip, _label(row.label, top), whisker, point, value)
        parts.append(tag("g", shown, class_=f"lead {kind}"))
    parts += [
        tag("text", "0", x=place(0.0), y=bottom + 15, class_="tick mid"),
        tag("text", "ahead →", x=WIDTH, y=bottom + 15, class_="tick end"),
    ]
    if low < 0 and place(0.0) - left > 20:
        parts.append(tag("text", "← behind", x=LABEL_WIDTH - 8, y=bottom + 15, class_="tick end"))
    said = "; ".join(f"{row.label} {_in_full(row.interval)}" for row in rows)
    return figure(title, note, bottom + 20, f"{title}: {said}", parts)


def reach_of(rows: Sequence[Lead], axis: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Return the ends of an axis that holds the intervals and 0, never of no length."""
    low = min([axis[0], 0.0, *(row.interval.low for row in rows)])
    high = max([axis[1], 0.0, *(row.interval.high for row in rows)])
    return (low, high) if high > low else (-1.0, 1.0)


def _told(rows: Sequence[Bar | str]) -> str:
    """Return what bars show, in words.

    >>> _told(["new", Bar("a", 0.1, "model"), Bar("b", 0.2, "base"), "old", Bar("a", 0.3, "model")])
    'new: a .1000, b .2000; old: a .3000'
    """
    said = ""
    for row in rows:
        if isinstance(row, str):
            said += f"{'; ' if said else ''}{row}: "
        else:
            gap = "" if not said or said.endswith(": ") else ", "
            said += f"{gap}{row.label} {measure(row.value)}"
    return said


def _in_full(interval: Interval) -> str:
    """Return a difference, its interval, and what follows from it."""
    ends = f"95 % interval {signed(interval.low)} to {signed(interval.high)}"
    doubt = "" if interval.is_ahead or interval.is_behind else ", could be chance"
    return f"{signed(interval.difference)} ({ends}{doubt})"


def _label(label: str, top: float) -> Markup:
    """Return what stands left of a row: a long label in two lines, a longer one without its end."""
    x = LABEL_WIDTH - 8
    if len(label) <= LABEL_LENGTH:
        return tag("text", label, x=x, y=top + 16, class_="name")
    lines = [
        f"{line[: LABEL_LENGTH - 1]}…" if len(line) > LABEL_LENGTH + 2 else line
        for line in textwrap.wrap(label, LABEL_LENGTH + 2, max_lines=2, placeholder="…")
    ]
    spans = [tag("tspan", line, x=x, y=top + 10 + 11 * n) for n, line in enumerate(lines)]
    return tag("text", spans, class_="name long")


def grid(figures: Sequence[Markup]) -> Markup:
    """Return charts side by side, as many as the screen has room for."""
    return tag("div", figures, class_="charts")


def figure(title: str, note: str, height: float, said: str, parts: Sequence[object]) -> Markup:
    """Return a chart under its caption; the SVG is one picture with one description."""
    picture = tag("svg", parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=said)
    caption = tag("figcaption", tag("b", title), " ", tag("small", note) if note else None)
    return tag("figure", caption, picture)


def straight(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line of a kind that the stylesheet knows."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def trim(value: float) -> float:
    """Return a coordinate without digits that no screen shows."""
    return round(value, 1)
