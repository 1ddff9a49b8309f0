"""The contract of every operation: docstring, argument checks, allocation, one call into a backend."""
