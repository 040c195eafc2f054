"""What our programs log: to stderr, and never a password or a token."""

import logging
import re

from superduper.store.mongo import redact

TOKEN = re.compile(r"\b(sd_[a-z0-9]{8}_)[A-Za-z0-9_-]{43}")


class Discreet(logging.Formatter):
    """Writes records, tracebacks among them, without the secrets they might hold."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return redact(TOKEN.sub(r"\1***", super().format(record)))


def log_to_stderr() -> None:
    """Let this process log."""
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
