"""The config's section of who is told; `crossrec.config` is where others import it from."""

from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from crossrec.config_training import Section


def is_web_address(url: str) -> bool:
    """Whether something can be sent there.

    >>> is_web_address("https://hooks.example.org/T0"), is_web_address("hooks.example.org/T0")
    (True, False)
    """
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class NotifyConfig(Section):
    """Who is told when a job ends."""

    webhook: SecretStr | None = Field(default=None, repr=False)
    """URL that gets one POST of runs/<run_id>/summary.json when a job ends, well or not; default:
    the variable CROSSREC_WEBHOOK, else nobody is told. It may hold a secret: it is never logged or
    written. Its failures are warnings."""

    @field_validator("webhook")
    @classmethod
    def _is_an_address(cls, webhook: SecretStr | None) -> SecretStr | None:
        if webhook is not None and not is_web_address(webhook.get_secret_value()):
            raise ValueError("an http:// or https:// URL")
        return webhook
