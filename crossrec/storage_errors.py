"""What the errors of disks, stores and their libraries mean, said so that a user can mend it.

    with explained("s3://bucket/nightly", options):
        filesystem.pipe_file(...)     # fails as StorageError, or MissingObject

In: an exception of the operating system, fsspec, s3fs or botocore.
Out: a `StorageError` whose message carries no secret.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from crossrec.errors import BadObject, StorageError, explain

REASONS: tuple[tuple[set[str], str, str], ...] = (
    (
        {"NoSuchBucket", "InvalidBucketName", "ParamValidationError"},
        "a bucket that exists",
        "create the bucket or mend its name in storage.root",
    ),
    (
        {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"},
        "credentials",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or key and secret in storage.options",
    ),
    (
        {
            "SignatureDoesNotMatch",
            "InvalidAccessKeyId",
            "AccessDenied",
            "ExpiredToken",
            "InvalidToken",
            "403",
        },
        "credentials that the store accepts",
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or key and secret in storage.options) "
        "and what they may do",
    ),
    (
        {"HTTPClientError", "ConnectionError", "TimeoutError", "404"},
        "a store that answers",
        "check AWS_ENDPOINT_URL (or endpoint_url in storage.options) and the network",
    ),
    (
        {"FileExistsError", "NotADirectoryError", "IsADirectoryError"},
        "a path that is free",
        "remove what is in the way or choose another path",
    ),
    (
        {"PermissionError", "FileNotFoundError", "OSError"},
        "a place that can be read and written",
        "check that it exists, its permissions and its free space, or choose another storage.root",
    ),
)
"""Names of an error (S3 error codes, exception classes), what was expected, how to mend it.

The first line that matches is taken."""

OTHER_REASON = (set[str](), "a store that serves the request", "see the error behind this one")

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CROSSREC_WEBHOOK",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
    "WANDB_API_KEY",
)
OPEN_OPTIONS = ("endpoint_url", "region_name")
"""Options that an error message may show; it shows the value of no other."""


class MissingObject(BadObject, FileNotFoundError):
    """There is no object at the path."""


@contextlib.contextmanager
def explained(where: str, options: Mapping[str, Any], writing: bool = False) -> Iterator[None]:
    """Turn failures of the system and of libraries into StorageError; programming errors pass.

    Args:
        where: the URI that a message names.
        options: of the filesystem; their values are kept out of messages.
        writing: whether a missing path means a folder that cannot be made, not a missing object.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if type(error).__module__ == "builtins" and not isinstance(error, OSError):
            raise
        names = error_names(error)
        if isinstance(error, FileNotFoundError) and not writing and "NoSuchBucket" not in names:
            mend = "check the path, or run the stage that writes it"
            raise MissingObject(explain(where, "an object", "none", mend)) from error
        reasons = (reason for reason in REASONS if reason[0] & set(names))
        _, expected, mend = next(reasons, OTHER_REASON)
        raise StorageError(explain(where, expected, _found(error, options), mend)) from error


def error_names(error: BaseException | None) -> list[str]:
    """Return S3 error codes and exception classes of an error and its causes, outermost first."""
    names = []
    for cause in _causes(error):
        names += [_error_code(cause), *(kind.__name__ for kind in type(cause).__mro__)]
    return names


def _error_code(error: BaseException) -> str:
    reply = getattr(error, "response", None)
    return str(reply.get("Error", {}).get("Code", "")) if isinstance(reply, dict) else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _found(error: Exception, options: Mapping[str, Any]) -> str:
    codes = (_error_code(cause) for cause in _causes(error))
    texts = (str(getattr(cause, "strerror", None) or cause) for cause in _causes(error))
    text = next(filter(None, codes), "") or next(filter(None, texts), type(error).__name__)
    return without_secrets(" ".join(text.split())[:200], options)


def without_secrets(text: str, options: Mapping[str, Any]) -> str:
    """Return the text with the values of options and of secret variables starred out.

    >>> without_secrets("bad key abc123", {"client": {"key": "abc123"}, "endpoint_url": "bad"})
    'bad key ***'
    >>> without_secrets("bad keys 12345, abc123: True", {"keys": [12345, "abc123"], "ssl": True})
    'bad keys ***, ***: True'
    """
    secrets = [os.environ.get(name, "") for name in SECRET_VARIABLES]
    for secret in [*secrets, *_secrets_of("", options)]:
        text = text.replace(secret, "***") if len(secret) > 3 else text
    return text


def _secrets_of(name: str, value: Any) -> Iterator[str]:
    """Yield what an option holds, as it would be written, however deep; no true or false."""
    if isinstance(value, Mapping):
        for inner, own in value.items():
            yield from _secrets_of(inner, own)
    elif isinstance(value, list | tuple):
        for own in value:
            yield from _secrets_of(name, own)
    elif name not in OPEN_OPTIONS and not isinstance(value, bool | None):
        yield str(value)
