"""Relations of the demo data: some of the pairs of items that its hidden structure makes alike.

An item is related to a few others of its topic and scene, in any domain: of a series that also has
its video and its merchandise. No text tells of the scene, so that relations say of an item that
nobody has touched what else only behaviour would.

    table = draw_relations(make_demo(users=4_000, seed=17), seed=17)
"""

import numpy as np
import pyarrow as pa

from crossrec.data.demo import Demo
from crossrec.schema import DOMAIN, ITEM_ID

SERIES = "same_series"

PAIRS_AN_ITEM = 3
SHARE = 0.6
"""Of the items are in a series that somebody wrote down."""

NOISE = 0.1
"""Of the pairs lead to any item instead."""


def draw_relations(demo: Demo, seed: int) -> pa.Table:
    """Return the relations as a table in the form of `data.relations`."""
    rng = np.random.default_rng([seed, 5])
    known = demo.known_items
    cell = known.topic * demo.settings.scenes + known.scene
    order = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[order], cell)
    sizes = np.searchsorted(cell[order], cell, "right") - starts
    items = np.repeat(np.flatnonzero(rng.random(len(cell)) < SHARE), PAIRS_AN_ITEM)
    places = starts[items] + (rng.random(len(items)) * sizes[items]).astype(np.int64)
    related = order[places]
    is_noise = rng.random(len(items)) < NOISE
    related[is_noise] = rng.integers(0, len(cell), is_noise.sum())
    apart = items != related
    ends = demo.items.select([ITEM_ID, DOMAIN])
    first, second = (ends.take(pa.array(end[apart])) for end in (items, related))
    return pa.table(
        {
            ITEM_ID: first[ITEM_ID],
            DOMAIN: first[DOMAIN],
            "relation": [SERIES] * len(first),
            "related_item_id": second[ITEM_ID],
            "related_domain": second[DOMAIN],
        }
    )
