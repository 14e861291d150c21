"""Benchmarks: `python -m bench.NAME`; the figures are in bench/README.md."""
