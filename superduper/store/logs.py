"""What our programs log: to stderr, and never a password or a token."""

import json
import logging
import re
from datetime import UTC, datetime

from superduper import settings
from superduper.errors import InvalidInput

# From the user's name to the last @, for a password may hold an @ or a / that should be escaped.
PASSWORD = re.compile(r"(://[^:/@\s]*):\S*@")
SECRET_OPTION = re.compile(
    r"((?:tlsCertificateKeyFilePassword|authMechanismProperties|proxyPassword)=)[^&\s]*", re.I
)
TOKEN = re.compile(r"\b(sd_[a-z0-9]{8}_)[A-Za-z0-9_-]{43}")


def redact(uri: str) -> str:
    """The URI without its password, for messages and logs."""
    return SECRET_OPTION.sub(r"\1***", PASSWORD.sub(r"\1:***@", uri))


def discreet(text: str) -> str:
    """A text without the secrets it might hold."""
    return redact(TOKEN.sub(r"\1***", text))


class Discreet(logging.Formatter):
    """Writes records, tracebacks among them, without the secrets they might hold."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return discreet(super().format(record))


class Structured(Discreet):
    """Writes records as JSON objects, with whatever was noted beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _ORDINARY},
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return discreet(json.dumps(told, default=str, ensure_ascii=False))


# uvicorn repeats its messages with the colours of a terminal.
_ORDINARY = {
    *vars(logging.makeLogRecord({})),
    *("message", "asctime", "taskName", "color_message"),
}


def log_to_stderr() -> None:
    """Let this process log, as text or, with the setting LOG, as JSON.

    Raises InvalidInput for another value of that setting.
    """
    said = settings.get("LOG").lower()
    if said not in ("text", "json"):
        raise InvalidInput(f"SUPERDUPER_LOG={said[:20]!r}: it is text or json")
    handler = logging.StreamHandler()
    handler.setFormatter(
        Structured()
        if said == "json"
        else Discreet("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
