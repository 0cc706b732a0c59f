"""Exact top-K scoring on Ray Data."""
