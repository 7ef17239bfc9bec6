"""What tests and benchmarks share: real daemons, real containers, and the search for leaks."""
