"""Training beside hand-written loops and beside other frameworks."""
