"""What items require of their user: columns of items held against columns of users.

In: the rules of `score.candidates.requires`. Items that require the same are of one kind, of which
there are few, so that a domain needs a number an item, and a user a truth value a kind:

    coder = RequiresCoder(rules.requires)
    codes = coder.code(table)                            # (N,) int32, the kind of each item
    requires = Requires(codes, coder.conditions, coder.kinds)
    requires.refused({"age": pa.array([17.0, None])}, 2)   # (2, kinds) bool

A number is held against a number, a truth value being 1 or 0, and a text against a text.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.config_score import Requirement
from crossrec.data.attributes import check_names
from crossrec.data.hashing import Array
from crossrec.data.inputs import Input, read_footers
from crossrec.data.kinds import is_number, is_text
from crossrec.errors import ConfigError, explain

WHERE = "score.candidates.requires"

MOST_KINDS = 4_096
"""So many truth values a user are held at once, as many as of a block of items."""

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}

Kind = tuple[float | str | None, ...]
"""What an item says in each condition's column; None requires nothing."""


@dataclass(frozen=True)
class Requires:
    """What the I items of a domain require.

    codes: (I,) int32, the kind of each item. conditions: operator and column of users. kinds: by
    code; kind 0 requires nothing.
    """

    codes: Array
    conditions: tuple[tuple[str, str], ...]
    kinds: tuple[Kind, ...]

    def refused(self, traits: Mapping[str, pa.Array], users: int) -> Array:
        """Return which kinds of items each of some users must not get, (U, kinds) bool.

        Args:
            traits: by column of users (U,) float64 or strings; what is missing is null.
            users: U.
        """
        refused = np.zeros((users, len(self.kinds)), bool)
        for place, (sign, column) in enumerate(self.conditions):
            asked = [kind[place] for kind in self.kinds]
            values = [value for value in dict.fromkeys(asked) if value is not None]
            held_UN = _held(sign, values, traits.get(column), users)
            # One more: None is held by everybody.
            held_UN = np.concatenate([held_UN, np.ones((users, 1), bool)], 1)
            found = {value: number for number, value in enumerate([*values, None])}
            refused |= ~held_UN[:, [found[value] for value in asked]]
        return refused


def _held(sign: str, values: Sequence[float | str], column: pa.Array | None, users: int) -> Array:
    """Return for which of N values of items each user holds a condition, (U, N) bool."""
    nothing = np.zeros((users, len(values)), bool)
    if column is None or not values or is_text(column.type) != isinstance(values[0], str):
        return nothing
    if isinstance(values[0], str):
        own = pc.index_in(column, value_set=pa.array(values, column.type)).fill_null(-1)
        asked, of_users = np.arange(len(values)), own.to_numpy(False)
    else:
        asked, of_users = np.array(values), column.fill_null(np.nan).to_numpy(False)
        column = pa.array(of_users, from_pandas=True)
    held: Array = OPERATORS[sign](asked, of_users[:, None])
    held[column.is_null().to_numpy(False)] = False
    return held


@dataclass
class RequiresCoder:
    """Gives every combination of what items require a number, in the order in which they come."""

    rules: Sequence[Requirement]
    _numbers: dict[Kind, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers[(None,) * len(self.rules)] = 0

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """Operator and column of users of each rule."""
        return tuple((sign, own) for _, sign, own in self.rules)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All that came, by their numbers."""
        return tuple(self._numbers)

    def code(self, table: pa.Table) -> Array:
        """Return the kind of each row of a table of items, (N,) int32.

        Raises:
            ConfigError: items require too many different things.
        """
        columns = [plain_values(table.column(name), WHERE) for name, _, _ in self.rules]
        coded = [column.combine_chunks().dictionary_encode() for column in columns]
        places = [part.indices.fill_null(-1).to_numpy() for part in coded]
        rows, back = np.unique(np.stack(places, 1), axis=0, return_inverse=True)
        values = [[*part.dictionary.to_pylist(), None] for part in coded]
        kinds = [tuple(own[place] for own, place in zip(values, row, strict=True)) for row in rows]
        numbers = [self._numbers.setdefault(kind, len(self._numbers)) for kind in kinds]
        if len(self._numbers) > MOST_KINDS:
            expected = f"at most {MOST_KINDS:,} different requirements of all items together"
            mend = "require fewer columns, or columns of fewer values"
            raise ConfigError(explain(WHERE, expected, "more", mend))
        return np.array(numbers, np.int32)[back.reshape(-1)]


def plain_values(column: pa.ChunkedArray, where: str, no_is_null: bool = True) -> pa.ChunkedArray:
    """Return a column as float64 or large_string; NaN is null.

    Args:
        column: of numbers, truth values or texts, or of nulls alone.
        where: the config's key that names it.
        no_is_null: whether false is null, too.

    Raises:
        ConfigError: it holds something else.
    """
    kind = column.type
    if pa.types.is_boolean(kind) and no_is_null:
        column = pc.if_else(column, True, pa.scalar(None, pa.bool_()))
    if is_text(kind):
        return column.cast(pa.large_string())
    try:
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        elif not (is_number(kind) or pa.types.is_null(kind)):
            raise pa.ArrowInvalid(str(kind))
        numbers = column.cast(pa.float64())
    except pa.ArrowException as error:
        expected = "columns of numbers that a float64 holds, truth values or texts"
        raise ConfigError(explain(where, expected, str(error), "choose another")) from error
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def check_requires(rules: Sequence[Requirement], items: Input, users: Input) -> None:
    """Look that the columns of the rules are there, and can be held against each other.

    Raises:
        ConfigError: it is not so.
    """
    for column, sign, own in rules:
        check_names(items, [column], WHERE)
        check_names(users, [own], WHERE)
        found = [kind_of(items, column), kind_of(users, own)]
        rule = f'["{column}", "{sign}", "{own}"]'
        if {"number", "text"} <= set(found):
            expected, mend = "two columns of numbers, or two of texts", "export them alike"
            raise ConfigError(explain(WHERE, expected, rule, mend))
        if "text" in found and sign in ("<=", ">="):
            expected, mend = "== or != between texts", "use numbers for what has an order"
            raise ConfigError(explain(WHERE, expected, rule, mend))


def kind_of(source: Input, column: str) -> str | None:
    """Return "text" or "number"; None where all is null."""
    types = [footer.types[column] for footer in read_footers(source, [column]) if footer.types]
    kinds = {_kind(source, column, one) for one in types if not pa.types.is_null(one)}
    if len(kinds) > 1:
        expected = f"one kind of values in {column} of data.{source.table}"
        found, mend = "numbers and texts", "export all files alike"
        raise ConfigError(explain(WHERE, expected, found, mend))
    return kinds.pop() if kinds else None


def _kind(source: Input, column: str, one: pa.DataType) -> str:
    of_dictionary = one.value_type if pa.types.is_dictionary(one) else one
    if is_text(one):
        return "text"
    if is_number(of_dictionary) or pa.types.is_boolean(of_dictionary):
        return "number"
    expected = f"numbers, truth values or texts in {column} of data.{source.table}"
    raise ConfigError(explain(WHERE, expected, str(one), "choose another column"))
