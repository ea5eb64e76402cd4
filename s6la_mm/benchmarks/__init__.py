"""Times and memory: what the scripts in tools/benchmarks measure with."""
