"""crossrec: nightly cross-domain recommendations, fine-tuned and scored in batch on Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossrec.readers import read_scores

__all__ = ["__version__", "read_scores"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what readers use when they use it: `import crossrec` itself loads nothing."""
    if name == "read_scores":
        from crossrec.readers import read_scores

        return read_scores
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
