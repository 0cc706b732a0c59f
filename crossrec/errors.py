"""What can go wrong, and whose move it is.

    CrossrecError            the job failed (exit 1)
    └── UserError            the user can mend it (exit 2)
        ├── ConfigError      a key or value of the config
        ├── InputError       a table, file or row of the input
        └── StorageError     the place where results go or come from

Every message says where, what was expected, what was found and how to mend it; `explain` puts the
four together:

    >>> str(InputError(explain("p7.parquet", "timestamp", "int64", "re-export the column")))
    'p7.parquet: expected timestamp, found int64; re-export the column'
"""

ALERT = 3
"""Exit status of a job that is done, but that somebody should look at: its summary says `alert`."""


class CrossrecError(Exception):
    """The job failed; a rerun continues from what is stored."""


class UserError(CrossrecError):
    """The user can mend it; nothing was changed."""


class ConfigError(UserError):
    """A key or value of the config is wrong."""


class InputError(UserError):
    """A table, file or row of the input is wrong."""


class StorageError(UserError):
    """The place where results go or come from cannot be used."""


class BadObject(StorageError):
    """One object is not what it must be; the store can be used."""


def explain(where: str, expected: str, found: str, mend: str) -> str:
    """Return one line in the form that every error message of crossrec has."""
    return f"{where}: expected {expected}, found {found}; {mend}"
