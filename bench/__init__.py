"""Benchmarks: one program each, run from the repository's root as `python -m bench.NAME`."""
