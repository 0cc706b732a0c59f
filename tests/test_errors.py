import pytest

from crossrec import errors
from crossrec.errors import CrossrecError, UserError, explain


def test_explain_says_where_expected_found_and_mend() -> None:
    line = explain("a.parquet", "timestamp of type timestamp", "int64", "re-export the column")
    assert line == (
        "a.parquet: expected timestamp of type timestamp, found int64; re-export the column"
    )


@pytest.mark.parametrize("name", ["ConfigError", "InputError", "StorageError"])
def test_what_a_user_can_mend_is_a_user_error(name: str) -> None:
    assert issubclass(getattr(errors, name), UserError)


def test_user_error_is_a_failure_of_the_job_too() -> None:
    assert issubclass(UserError, CrossrecError)
