"""Benchmarks: stages on made-up data of any size, and peers beside them."""
