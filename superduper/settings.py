"""Settings from the environment: one table, from which the documentation and --help are made."""

import os
from dataclasses import dataclass
from pathlib import Path

from superduper.errors import InvalidInput


@dataclass(frozen=True)
class Setting:
    """One row: `SUPERDUPER_<NAME>`, what it is when unset, what it is for."""

    name: str
    default: str
    help: str

    @property
    def variable(self) -> str:
        """The environment variable's name."""
        return f"SUPERDUPER_{self.name}"


SETTINGS = (
    Setting(
        "URI",
        "embedded:./superduper-data",
        "Where the data is: embedded:PATH, mongodb://, http://.",
    ),
    Setting("DATABASE", "main", "The database that a server serves."),
    Setting("TOKEN", "", "The token that a client sends to a server."),
    Setting("HOST", "127.0.0.1", "The address that the server listens on."),
    Setting("PORT", "8000", "The port that the server listens on; 0 lets the system choose."),
    Setting(
        "WORKERS",
        "1",
        "HTTP processes of a server; they share its port, its models and its limits.",
    ),
    Setting(
        "HOSTS",
        "",
        "Names that the server answers to (Host header), with commas; default: any, with a token.",
    ),
    Setting("HOME", "~/.superduper", "Keys and other things that are not data (mode 0700)."),
    Setting("STORE", "auto", "The embedded store's server: auto, mongod, secantus-rust, secantus."),
    Setting(
        "OPLOG_ENTRIES",
        "500000",
        "Changes an embedded store remembers; who was away for more of them scans.",
    ),
    Setting(
        "DEVICE",
        "auto",
        "Where models run and imputations are fitted: auto (a GPU if there is one), cpu, cuda:1.",
    ),
    Setting("CHILD_MEMORY_MB", "8192", "MiB of memory for a process that runs user code."),
    Setting(
        "CHILD_FOLDERS",
        "",
        "Folders besides its own where user code may change files, with colons between them.",
    ),
    Setting(
        "MODELS_MEMORY_MB",
        "16384",
        "MiB for the models that a process keeps loaded; the least recently used go first.",
    ),
    Setting("PREDICT_TIMEOUT", "30", "Seconds a prediction may take before its process is ended."),
    Setting("OUTPUTS_HOURS", "24", "Hours that the outputs of a job of predictions are kept."),
    Setting(
        "DRAIN_SECONDS",
        "20",
        "Whole seconds that a server which is told to stop gives to what was begun.",
    ),
    Setting("LOG", "text", "What the programs log: text, or json (an object a line)."),
    Setting("TRACES", "off", "on: OpenTelemetry spans of requests, configured by OTEL_*."),
    Setting("BODY_LIMIT_MB", "64", "Largest request body the server accepts, in MiB."),
    Setting("TOKEN_RATE", "2000", "Requests a second that a server takes from one token."),
    Setting("TOKEN_AT_ONCE", "128", "Requests of one token that a server answers at once."),
    Setting(
        "ADDRESS_CONNECTIONS",
        "512",
        "Connections that a server takes from one address; raise it behind a proxy.",
    ),
    Setting("REGISTER_CODE", "auto", "Whether a server takes code: yes, no, auto (on loopback)."),
    Setting(
        "CACHE", "", "Folder for training data of fits; default: one in the system's temporary."
    ),
    Setting("CACHE_MB", "10240", "MiB of training data kept for later fits on the same data."),
    Setting(
        "CHECKPOINT_SECONDS",
        "10",
        "Seconds of a fit between checkpoints; with 0, as many as can be.",
    ),
    Setting("LEASE_SECONDS", "10", "How long a worker may be silent before another takes over."),
)

_ROWS = {row.name: row for row in SETTINGS}


def get(name: str) -> str:
    """The value of a setting: from the environment, else its default."""
    row = _ROWS[name]
    return os.environ.get(row.variable) or row.default


def get_number(name: str) -> float:
    """The value of a numeric setting.

    Raises InvalidInput that names the variable if its text is not a number.
    """
    text = get(name)
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInput(f"{_ROWS[name].variable}={text!r} is not a number") from error


def home() -> Path:
    """The private folder for keys, made on first use with mode 0700."""
    path = Path(get("HOME")).expanduser()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
