import operator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from crossrec.config import Config
from crossrec.data.inputs import list_input
from crossrec.data.requires import Requires, RequiresCoder, check_requires
from crossrec.errors import ConfigError
from crossrec.storage import Store

AGES = [None, 0.0, 17.0, 18.0, 40.0]
"""Of users; of the first nothing is known."""


def allowed_to(rules: list[Any], items: dict[str, Any], traits: dict[str, Any]) -> list[list[int]]:
    """Return the items that each user may get."""
    coder, table = RequiresCoder(rules), pa.table(items)
    # In two parts, as files are read.
    codes = np.concatenate([coder.code(table.slice(0, 2)), coder.code(table.slice(2))])
    requires = Requires(codes, coder.conditions, coder.kinds)
    users = len(next(iter(traits.values())))
    refused = requires.refused({name: pa.array(own) for name, own in traits.items()}, users)
    return [np.flatnonzero(~row[codes]).tolist() for row in refused]


@pytest.mark.parametrize("column", [[None, 18, 0, 18], [float("nan"), 18.0, 0.0, 18.0]])
def test_an_age_that_is_not_reached_or_not_known_fulfils_nothing(column: list[Any]) -> None:
    found = allowed_to([("min_age", "<=", "age")], {"min_age": column}, {"age": AGES})
    assert found == [[0], [0, 2], [0, 2], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_a_flag_that_is_false_requires_nothing() -> None:
    items = {"tracks": [True, False, None, True]}
    traits = {"consent": [1.0, 0.0, None]}
    found = allowed_to([("tracks", "==", "consent")], items, traits)
    assert found == [[0, 1, 2, 3], [1, 2], [1, 2]]


def test_texts_are_held_against_texts_and_all_rules_must_hold() -> None:
    items = {"banned_in": ["de", "fr", None, "de"], "min_age": [None, None, 18, 18]}
    traits = {"country": ["de", "us", None, "fr"], "age": [40.0, 10.0, 40.0, 18.0]}
    rules = [("banned_in", "!=", "country"), ("min_age", "<=", "age")]
    assert allowed_to(rules, items, traits) == [[1, 2], [0, 1], [2], [0, 2, 3]]


@pytest.mark.parametrize("sign", ["<=", ">=", "==", "!="])
def test_rules_agree_with_the_plain_way_on_random_columns(sign: str) -> None:
    draw = np.random.default_rng(17)
    asked = [int(n) if n else None for n in draw.integers(0, 6, 50)]
    own = [float(n) if n else None for n in draw.integers(0, 6, 50)]
    holds = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}[sign]
    found = allowed_to([("level", sign, "own")], {"level": asked}, {"own": own})
    for user, items in zip(own, found, strict=True):
        assert items == [
            place
            for place, level in enumerate(asked)
            if level is None or (user is not None and holds(level, user))
        ]


def test_a_trait_of_the_wrong_kind_or_none_at_all_fulfils_nothing() -> None:
    rules, items = [("min_age", "<=", "age")], {"min_age": [None, 3, 3, 3]}
    assert allowed_to(rules, items, {"age": ["40"]}) == [[0]]
    assert allowed_to(rules, items, {"another": [40.0]}) == [[0]]


def test_too_many_different_requirements_are_refused() -> None:
    coder = RequiresCoder([("price", "<=", "purse")])
    with pytest.raises(ConfigError, match="at most 4,096 different requirements"):
        coder.code(pa.table({"price": np.arange(5_000)}))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (("min_age", "<=", "aeg"), "a column of data.users .* found aeg"),
        (("min_agee", "<=", "age"), "a column of data.items .* found min_agee"),
        (("min_age", "<=", "country"), "two columns of numbers, or two of texts"),
        (("region", "<=", "country"), "== or != between texts"),
        (("day", "==", "age"), "numbers, truth values or texts in day"),
    ],
)
def test_columns_that_cannot_be_held_against_each_other_are_named(
    store: Store, rule: Any, said: str
) -> None:
    days = pa.array([0], pa.date32())
    items = {"min_age": [18], "region": ["de"], "day": days}
    store.write_parquet("items.parquet", pa.table(items))
    store.write_parquet("users.parquet", pa.table({"age": [True], "country": ["de"]}))
    tables = [
        list_input(name, store.uri(f"{name}.parquet"), store.options) for name in ("items", "users")
    ]
    check_requires([("min_age", "<=", "age"), ("region", "==", "country")], *tables)
    with pytest.raises(ConfigError, match=said):
        check_requires([rule], *tables)


def test_rules_on_users_need_a_table_of_users() -> None:
    settings: dict[str, Any] = {
        "storage": {"root": "/x"},
        "score": {"candidates": {"requires": [["min_age", "<=", "age"]]}},
    }
    with pytest.raises(ValidationError, match=r"needs data\.users"):
        Config.model_validate(settings)
    data = {"events": "/e", "items": "/i", "users": "/u"}
    rules = Config.model_validate(settings | {"data": data}).score.candidates
    assert rules.requires == (("min_age", "<=", "age"),)
