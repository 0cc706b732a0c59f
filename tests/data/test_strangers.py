"""Domains that events name and the catalogue lacks; no Ray."""

import numpy as np
import pyarrow as pa
import pytest

from crossrec.data import strangers
from crossrec.data.strangers import Stranger, add_up, find_strangers, retired_events
from crossrec.schema import US_PER_DAY

AS_OF_US = 100 * US_PER_DAY


def find(*events: tuple[str, float]) -> dict[str, Stranger]:
    """Return the strangers of events by domain and day."""
    names, days = zip(*events, strict=True)
    times = (np.array(days) * US_PER_DAY).astype(np.int64)
    return find_strangers(pa.array(names, pa.large_string()), times)


def test_a_domain_has_its_events_and_the_newest_of_them() -> None:
    found = find(("a", 3), ("b", 2), ("a", 1))
    assert found == {"a": Stranger(2, 3 * US_PER_DAY), "b": Stranger(1, 2 * US_PER_DAY)}
    assert find_strangers(pa.array([], pa.large_string()), np.zeros(0, np.int64)) == {}


def test_parts_add_up() -> None:
    assert add_up([find(("a", 3)), {}, find(("a", 5), ("b", 1))]) == find(
        ("a", 3), ("a", 5), ("b", 1)
    )


def test_a_domain_is_retired_a_week_after_its_last_event() -> None:
    found = find(("long ago", 92.9), ("long ago", 1), ("just now", 93), ("just now", 1))
    assert retired_events(found, AS_OF_US) == 2
    assert not found["just now"].is_retired(AS_OF_US)


def test_ids_in_the_wrong_column_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "MOST_DOMAINS", 2)
    many = find(*((f"id {number}", 1) for number in range(9)), ("real", 1), ("real", 2))
    assert list(many) == ["real", "id 0"]
    assert list(add_up([many, find(("id 0", 1), ("id 7", 1))])) == ["id 0", "real"]
