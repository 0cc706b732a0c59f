"""A chart of what probabilities said beside how often it came to be, as inline SVG.

In: bins as `crossrec.evaluate.calibration.calibrate` finds them. Out: a figure as in
`crossrec.evaluate.charts`. Both axes are logarithmic, since most probabilities are close to 0.

>>> bins = [{"predicted": 0.002, "observed": 0.001, "pairs": 900}]
>>> "said 0.2 %: came true 0.1 % of 900 pairs" in reliability("shop", bins)
True
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from crossrec.evaluate.charts import WIDTH, figure, straight, trim
from crossrec.evaluate.markup import Markup, count, share, tag

LOWEST = -5
"""Decade at which an axis ends at the latest: one in a hundred thousand; below it is the edge."""


def reliability(title: str, bins: Sequence[Mapping[str, Any]], note: str = "") -> Markup:
    """Return bins as points, what was said from left to right, how often it was so upwards.

    On the dashed diagonal as much came true as was said, above it more, below it less. A bin in
    which nothing came true is a hollow square on the lower edge, through which no line goes.

    Args:
        title: what the figure is called.
        bins: at least one.
        note: said beside the title.
    """
    top, bottom, left, right = 22, 190, 52, WIDTH - 16
    low, high = _decades(bins)

    def place(said: float, came: float) -> tuple[float, float]:
        x, y = ((max(log10(value), low) if value > 0 else low) for value in (said, came))
        across, up = ((value - low) / (high - low) for value in (x, y))
        return trim(left + across * (right - left)), trim(bottom - up * (bottom - top))

    parts = [tag("text", "came true ↑", x=0, y=12, class_="tick")]
    for decade in range(low, high + 1):
        x, y = place(10.0**decade, 10.0**decade)
        parts += [
            straight(left, y, right, y, "grid"),
            straight(x, top, x, bottom, "grid"),
            tag("text", share(10.0**decade, 1.0), x=left - 6, y=y + 4, class_="tick end"),
            tag("text", share(10.0**decade, 1.0), x=x, y=bottom + 17, class_="tick mid"),
        ]
    parts.append(tag("text", "said →", x=right, y=bottom + 34, class_="tick end"))
    parts.append(tag("path", d=f"M{left} {bottom}L{right} {top}", class_="series"))
    places = [place(found["predicted"], found["observed"]) for found in bins]
    drawn = [point for point, found in zip(places, bins, strict=True) if found["observed"] > 0]
    path = " ".join(f"{x:g},{y:g}" for x, y in drawn)
    parts.append(tag("polyline", points=path, class_="series model"))
    told = [told_of(found) for found in bins]
    for (x, y), found, tip in zip(places, bins, told, strict=True):
        tip = tag("title", tip)
        if found["observed"] > 0:
            parts.append(tag("circle", tip, cx=x, cy=y, r=4, class_="mark model"))
        else:
            square = {"x": trim(x - 3.5), "y": trim(y - 3.5), "width": 7, "height": 7}
            parts.append(tag("rect", tip, class_="mark", **square))
    return figure(title, note, bottom + 40, f"{title}: {'; '.join(told)}", parts)


def told_of(found: Mapping[str, Any]) -> str:
    """Return a bin in words."""
    said, came = share(found["predicted"], 1.0), share(found["observed"], 1.0)
    return f"said {said}: came true {came} of {count(found['pairs'])} pairs"


def _decades(bins: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the powers of ten between which all that is above 0 lies; at least one apart."""
    values = [found[name] for found in bins for name in ("predicted", "observed")]
    logs = [log10(value) for value in values if value > 0] or [-1.0]
    low = max(LOWEST, floor(min(logs)))
    return min(low, -1), max(ceil(max(logs)), low + 1)
