"""Benchmarks: each compares with a hand-written loop or a named alternative in the same run."""
