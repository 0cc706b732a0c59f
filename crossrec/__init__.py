"""crossrec: nightly cross-domain recommendations, fine-tuned and scored in batch on Ray."""

__version__ = "0.1.0"
