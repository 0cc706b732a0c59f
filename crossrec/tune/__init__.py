"""The search for settings: Ray Tune over a space in the config, stopped early by ASHA."""
