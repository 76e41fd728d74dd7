"""Benchmarks of avgrad, each run as `python -m eval.NAME`."""
