"""Our code and its peers on the same inputs, in one process, in turn: ``python -m benchmarks.bench``, `make bench`."""
