"""The part of the report that says how far the reasons of listed items can be trusted.

In: `explanations` of metrics.json (see `crossrec.evaluate.faithful`), which is there under
`score.explain`. Out: a section, or None.

>>> why_section({}) is None
True
"""

from crossrec.evaluate.judged import Metrics
from crossrec.evaluate.markup import Markup, Rows, count, measure, note, render, table


def why_section(metrics: Metrics) -> Markup | None:
    """Return how reasons compare with scoring shorter histories anew."""
    found = metrics.get("explanations")
    if not found:
        return None
    n = count(found["reasons"])
    explained = (
        f"Each listed item names the {n} items of its user's history, of any domain, that raised "
        f"its score most. {count(found['items'])} listed items of {count(found['users'])} users "
        "were scored again without each item of the history. Order: Spearman's correlation of "
        "what was said with what was found, at the weights that the parts of the score have for "
        "the user, and where those follow the shorter history, which moves all items of a list. "
        "First reason: how often it is the item whose loss costs most."
    )
    head = ["", ">with reasons", ">with random items"]
    rows = [
        ["stays in the list with these alone", *_pair(found["sufficiency"])],
        ["leaves the list without these", *_pair(found["necessity"])],
    ]
    agreement = [
        ["order, at the user's weights", measure(found["rank_correlation"])],
        ["order, where the weights follow", measure(found["rank_correlation_of_all"])],
        ["first reason", measure(found["first_reason"])],
    ]
    return render(
        [
            note(explained),
            table("Beside leave-one-out", ["", ">agreement"], [Rows(None, agreement)]),
            table("Share of listed items", head, [Rows(None, rows)]),
        ]
    )


def _pair(found: dict[str, float | None]) -> list[str]:
    return [measure(found["reasons"]), measure(found["random"])]
