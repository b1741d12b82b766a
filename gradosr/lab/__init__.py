"""Tools that measure gradosr: evaluation, benchmarks, conformance, and the servers and data that they need."""
