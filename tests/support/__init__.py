"""What tests and benchmarks share: small data, references, and processes that train."""
