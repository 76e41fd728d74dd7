"""The metrics of the benchmarks, one file per family. They take arrays and know nothing of models or files."""
