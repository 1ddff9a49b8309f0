"""Every reader of a user's file, on files that are wrong: `make fuzz-files`, or ``python -m fuzz_files --help``."""
