"""HTML that is escaped unless it says otherwise, and how the report writes numbers.

In: strings, numbers and dates from any source. Out: `Markup`, text that is safe to put into a
page. Whatever is not `Markup` is escaped on its way in, so that a title from a catalogue cannot
become an element:

>>> tag("p", "1 < 2, ", tag("b", "<script>"), class_="note")
'<p class="note">1 &lt; 2, <b>&lt;script&gt;</b></p>'
"""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

VOID = frozenset({"br", "input", "link", "meta"})
"""The elements in use that have neither children nor an end tag."""


class Markup(str):
    """Text that is HTML already: what `tag` returns, or a constant of this package."""

    __slots__ = ()


class Rows(NamedTuple):
    """A part of a table: a heading or none, and rows, each headed by its first cell."""

    heading: str | None
    rows: Sequence[Sequence[object]]


def render(child: object) -> Markup:
    """Return a child as HTML: Markup as it is, None as nothing, sequences joined, else escaped.

    >>> render(["a & b", None, Markup("<br>")])
    'a &amp; b<br>'
    """
    if child is None:
        return Markup("")
    if isinstance(child, Markup):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return Markup("".join(map(render, child)))
    return Markup(html.escape(str(child)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element; `class_` is class, `aria_label` aria-label; None and False are left out.

    >>> tag("input", type="search", hidden=True, disabled=None, aria_label='"users"')
    '<input type="search" hidden aria-label="&quot;users&quot;">'
    """
    opening = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        opening.append(attribute if value is True else f'{attribute}="{html.escape(str(value))}"')
    start = f"<{' '.join(opening)}>"
    return Markup(start if name in VOID else f"{start}{render(children)}</{name}>")


def table(caption: str, head: Sequence[str], parts: Sequence[Rows]) -> Markup:
    """Return a table that scrolls sideways where it must; a column named ">..." aligns right.

    >>> "<td>2</td>" in table("Rows", ["name", "rows"], [Rows(None, [["a", 2]])])
    True
    """
    right = [name.startswith(">") for name in head]
    columns = [
        tag("th", name.removeprefix(">"), scope="col", class_="n" if is_right else None)
        for name, is_right in zip(head, right, strict=True)
    ]
    body = []
    for part in parts:
        lines = []
        if part.heading is not None:
            heading = tag("th", part.heading, scope="rowgroup", colspan=len(head), class_="part")
            lines.append(tag("tr", heading))
        for first, *cells in part.rows:
            line = [tag("th", first, scope="row", class_="n" if right[0] else None)]
            for cell, is_right in zip(cells, right[1:], strict=True):
                line.append(tag("td", cell, class_="n" if is_right else None))
            lines.append(tag("tr", line))
        body.append(tag("tbody", lines))
    content = tag("table", tag("caption", caption), tag("thead", tag("tr", columns)), body)
    return tag("div", content, class_="scroll", role="region", tabindex=0, aria_label=caption)


def count(number: float) -> str:
    """Return a whole number with thousands separated.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{number:,.0f}"


def share(part: float, whole: float) -> str:
    """Return a share of a whole in percent, with a digit more where it is small.

    >>> share(1, 8), share(1, 800), share(1, 0)
    ('12 %', '0.12 %', '')
    """
    if not whole:
        return ""
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def measure(value: float | None) -> str:
    """Return a figure between 0 and 1 with four digits, or a dash for none.

    >>> measure(0.08123), measure(1.0), measure(None)
    ('.0812', '1.0000', '–')
    """
    return "–" if value is None else f"{value:.4f}".removeprefix("0")


def signed(value: float) -> str:
    """Return a difference with its sign and four digits.

    >>> signed(0.0123), signed(-0.002), signed(0.00001)
    ('+.0123', '−.0020', '.0000')
    """
    text = measure(abs(value))
    if text == measure(0.0):
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def seconds(value: float | None) -> str:
    """Return a time in the unit that a person would choose, or a dash for none.

    >>> seconds(2.46), seconds(81.0), seconds(754.0), seconds(None)
    ('2.5 s', '81 s', '12 min 34 s', '–')
    """
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{count(value // 60)} min {value % 60:.0f} s"


def folded(title: str, *content: object) -> Markup:
    """Return content that opens on demand."""
    return tag("details", tag("summary", title), content)


def note(*text: object) -> Markup:
    """Return a paragraph that explains what stands around it."""
    return tag("p", text, class_="note")


def none(*text: object) -> Markup:
    """Return a paragraph that says that something is not there."""
    return tag("p", text, class_="none")


def size(number: float) -> str:
    """Return bytes in the unit that a person would choose.

    >>> size(900), size(1_234_567)
    ('900 bytes', '1.2 MB')
    """
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
