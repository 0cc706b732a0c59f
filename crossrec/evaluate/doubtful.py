"""The part of the report on new items that are held back because of their texts.

In: `texts` of metrics.json, as `crossrec.score.attraction` tells it once the night's items are
known. Out: a section, or None where texts are not looked at.

>>> doubtful_section({}) is None
True
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossrec.evaluate.judged import Metrics
from crossrec.evaluate.markup import Markup, Rows, count, note, render, share, table

Found = Mapping[str, Any]


def doubtful_section(metrics: Metrics) -> Markup | None:
    """Return how many new items are held back in each domain, why, and some of them."""
    found = metrics.get("texts")
    if not found:
        return None
    explained = (
        "Items that nobody has touched yet whose text is no honest description, as far as "
        "score.candidates.check_texts can tell. They are shown to one user in "
        f"{count(found['trial'])}, where their score says so, until they have events of their own; "
        "all of them are in candidates/texts.parquet of the run."
    )
    examples = found.get("examples") or []
    return render(
        [note(explained), _counts(found["domain"]), _examples(examples) if examples else None]
    )


def _counts(domains: Mapping[str, Found]) -> Markup:
    rows = [
        [
            name,
            count(part["items"]),
            count(part["new"]),
            count(part["held_back"]),
            share(part["held_back"], part["new"]) if part["new"] else "–",
            ", ".join(f"{reason} {count(items)}" for reason, items in part["reasons"].items())
            or "–",
        ]
        for name, part in domains.items()
    ]
    head = ["domain", ">items", ">new items", ">held back", ">of the new ones", "why"]
    return table("New items held back because of their texts", head, [Rows(None, rows)])


def _examples(examples: Sequence[Found]) -> Markup:
    rows = [
        [
            row["domain"],
            row["item_id"],
            row["text"] or "–",
            row["reason"],
            "–" if row["share"] is None else share(row["share"], 1.0),
        ]
        for row in examples
    ]
    head = ["domain", "item", "text", "reason", ">users it attracts"]
    return table("Some of them", head, [Rows(None, rows)])
