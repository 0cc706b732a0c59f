"""Users who asked to be forgotten (`data.forget`): who they are, and tables without them.

forgotten = read_forgotten(source, segments)
table = without(table, forgotten)
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from crossrec.config import Config
from crossrec.data.inputs import (
    CHUNK_ROWS,
    Input,
    Segment,
    check_column,
    list_input,
    plan_chunks,
    read_chunk,
    read_footers,
)
from crossrec.errors import ConfigError, explain
from crossrec.schema import USER_ID


def read_forgotten(source: Input, segments: Sequence[Segment]) -> pa.LargeStringArray:
    """Return the ids that a table names, each once."""
    parts = [part[USER_ID] for part in read_chunk(source, segments, [USER_ID])]
    none = pa.array([], pa.large_string())
    chunks = [chunk for part in parts for chunk in part.chunks]
    return pc.unique(pa.concat_arrays([none, *chunks])).drop_null()


def find_forgotten(config: Config) -> pa.LargeStringArray:
    """Return the ids of `data.forget`, read here.

    Raises:
        ConfigError: the config names none.
        InputError: there is no such table, or it has no column user_id.
    """
    if config.data.forget is None:
        expected = "a Parquet with the ids of users to forget"
        mend = "give data.forget=..."
        raise ConfigError(explain("data.forget", expected, "none", mend))
    source = list_input("forget", config.data.forget, config.storage.options)
    footers = read_footers(source, [USER_ID])
    check_column(source, footers, USER_ID, "string")
    segments = [segment for chunk in plan_chunks(footers, CHUNK_ROWS) for segment in chunk]
    return read_forgotten(source, segments)


def without(table: pa.Table, forgotten: pa.LargeStringArray) -> pa.Table:
    """Return the rows of other users; the same table where there is nothing to leave out."""
    if not len(forgotten):
        return table
    users = table[USER_ID]
    is_theirs = pc.is_in(users, pa.array(forgotten, users.type))
    return table.filter(pc.invert(is_theirs)) if pc.any(is_theirs).as_py() else table
