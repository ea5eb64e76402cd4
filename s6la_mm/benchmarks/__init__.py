"""Times, memory and scaling: what the scripts in tools/benchmarks measure with."""
