"""Judging written lists: metrics, baselines, report."""
