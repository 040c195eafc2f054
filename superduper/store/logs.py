"""What our programs log: to stderr, and never a password or a token."""

import logging
import re

# From the user's name to the last @, for a password may hold an @ or a / that should be escaped.
PASSWORD = re.compile(r"(://[^:/@\s]*):\S*@")
SECRET_OPTION = re.compile(
    r"((?:tlsCertificateKeyFilePassword|authMechanismProperties|proxyPassword)=)[^&\s]*", re.I
)
TOKEN = re.compile(r"\b(sd_[a-z0-9]{8}_)[A-Za-z0-9_-]{43}")


def redact(uri: str) -> str:
    """The URI without its password, for messages and logs."""
    return SECRET_OPTION.sub(r"\1***", PASSWORD.sub(r"\1:***@", uri))


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
