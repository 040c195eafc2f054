"""Work that takes time, kept in the database: put, claim, run under a lease, finish once."""


class Cancelled(Exception):
    """The work was cancelled, or its worker is stopping: control flow, not a failure."""
