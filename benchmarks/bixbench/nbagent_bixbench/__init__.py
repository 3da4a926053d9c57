"""BixBench-style tasks: loading, grading, and a bundled set in the same format."""
