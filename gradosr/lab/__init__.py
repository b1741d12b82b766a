"""What measures gradosr: evaluation, benchmarks, conformance, and the servers and data that they need."""
