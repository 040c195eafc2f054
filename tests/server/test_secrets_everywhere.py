"""A day in the life of a server, and afterwards a search of all that was left for known secrets."""

import base64
import json
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from pymongo import MongoClient

import superduper_client
from superduper.errors import SuperduperError, Unauthorized
from superduper.store.signing import Keyring
from tests.imputations.fitting import Classifier, Labels, equal, points
from tests.server.certificates import make_certificate
from tests.server.running import CLI, Running, run, running
from tests.server.secured_store import SecuredStore, needs_program
from tests.server.seen_processes import Seen, seen_processes
from tests.server.test_secrets import ask_everything
from tests.waiting import until

pytestmark = [needs_program, pytest.mark.timeout(600)]

PASSWORDS = {"server": "geheim-of-the-server", "worker": "geheim-of-the-worker"}
WRONG = "sd_abcdefgh_" + "W" * 43  # a token that was never valid, and still is nobody's business
PLAIN = "what a user wrote down"


@dataclass
class Day:
    """What was secret that day, what was said, and where things were left."""

    folder: Path
    secrets: dict[str, str] = field(default_factory=lambda: {**PASSWORDS, "wrong token": WRONG})
    said: list[str] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def keep_token(self, name: str, token: str) -> str:
        """Remember a token and the half of it that is secret."""
        self.secrets |= {name: token, f"{name}, its end": token[-43:]}
        return token

    def command(self, uri: str, *arguments: str, **more: str) -> str:
        """What a command answered, with its complaints."""
        environment = {"SUPERDUPER_HOME": str(self.folder / "home"), "SUPERDUPER_URI": uri, **more}
        ended = run(*arguments, **environment)
        self.said.append(ended.stdout + ended.stderr)
        return ended.stdout


def fails(value: Any) -> Any:
    """A function that does not like its input."""
    raise ValueError("no")


def ends(value: Any) -> Any:
    """A function that takes its process with it."""
    import os

    os._exit(3)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    day = Day(tmp_path_factory.mktemp("day"))
    day.store.mkdir()
    store = SecuredStore(day.store)
    with store.open_to_all() as client:
        for user, password in PASSWORDS.items():
            client.admin.command("createUser", user, pwd=password, roles=["root"])
    Keyring.open(day.folder / "home").create("code")
    tls = day.folder / "tls"
    tls.mkdir()
    certificate = make_certificate(tls)
    day.secrets |= private_halves(day.folder / "home", day.store / "key.pem", tls / "key.pem")
    with seen_processes() as day.seen, store.secured():
        live(day, {user: store.uri(user, word) for user, word in PASSWORDS.items()}, certificate)
        with MongoClient[dict[str, Any]](store.uri("server", PASSWORDS["server"])) as client:
            kept = client["main"]
            day.said += [
                str(doc) for name in kept.list_collection_names() for doc in kept[name].find()
            ]
    return day


def private_halves(home: Path, *pem: Path) -> dict[str, str]:
    """The private keys in the files of a keyring, and of certificates."""
    (key,) = [json.loads(path.read_text())["private"] for path in (home / "keys").glob("*.key")]
    lines = {f"{path.parent.name}'s TLS key": path.read_text().splitlines()[1] for path in pem}
    return {"signing key": key, **lines}


def live(day: Day, uris: dict[str, str], certificate: tuple[str, str]) -> None:
    """Serve, work, fit, predict, fail and crash."""
    home = day.folder / "home"
    server = {"SUPERDUPER_URI": uris["server"], "SUPERDUPER_HOME": str(home)}
    worker = {"SUPERDUPER_URI": uris["worker"], "SUPERDUPER_HOME": str(home)}
    serve = ("serve", "--database", "main", "--port", "0", "--json")
    tls = ("--tls-certificate", certificate[0], "--tls-key", certificate[1])
    with running(day.folder / "serve.log", *serve, **server) as serving:
        token = day.keep_token("first token", serving.ready["token"])
        trusted = ssl.create_default_context(cafile=certificate[0])
        with (
            running(day.folder / "tls.log", *serve, *tls, **server) as secure,
            httpx2.Client(base_url=secure.ready["url"], verify=trusted) as http,
        ):
            for sent, status in ((token, 200), (WRONG, 401)):
                answer = http.get("/v1/status", headers={"Authorization": f"Bearer {sent}"})
                assert answer.status_code == status
                day.said.append(answer.text)
        use_commands(day, uris["server"], serving, token)
        work(day, serving, token, worker)
        day.said += ask_everything(serving, token)


def use_commands(day: Day, uri: str, serving: Running, token: str) -> None:
    """The command line, on the database and over HTTP; rightly and wrongly."""
    made = json.loads(day.command(uri, "token", "create", "--role", "reader", "--json"))
    day.said.pop()  # where it is shown, this once
    day.keep_token("reader's token", made["token"])
    for command in ("list", f"revoke {made['id']}", "revoke nobody"):
        day.command(uri, "token", *command.split())
    for command in ("audit list", "audit verify", "status", "doctor", "jobs", "key rotate"):
        day.command(uri, *command.split())
    day.secrets |= {
        path.name: json.loads(path.read_text())["private"]
        for path in (day.folder / "home" / "keys").glob("*.key")
    }
    url = serving.ready["url"]
    day.command(url, "status", SUPERDUPER_TOKEN=token)
    day.command(url, "status", SUPERDUPER_TOKEN=WRONG)
    day.command(uri.replace(PASSWORDS["server"], PASSWORDS["worker"]), "status")
    day.command(re.sub(r":\d+/", ":1/", uri), "status")


@contextmanager
def working(log: Path, environment: dict[str, str]) -> Iterator[None]:
    """A worker, for all databases."""
    with log.open("wb") as errors:
        worker = subprocess.Popen([*CLI, "work"], stderr=errors, env={**os.environ, **environment})
    try:
        yield
    finally:
        worker.terminate()
        assert worker.wait(60) == 0, log.read_text()


def work(day: Day, serving: Running, token: str, environment: dict[str, str]) -> None:
    """Fit an imputation, fill, predict; models that fail and that end their process."""
    with superduper_client.connect(serving.ready["url"], token, timeout=120) as client:
        docs = client["main"]["docs"]
        docs.insert_many(
            {"_id": i, "x": x, "note": PLAIN, **({"y": y} if i < 60 else {})}
            for i, (x, y) in points(80).items()
        )
        docs.create_model("model", Classifier())
        docs.create_function("target", Labels())
        docs.create_loss("loss", torch.nn.CrossEntropyLoss())
        docs.create_metric("accuracy", equal)
        for name, function in (("fails", fails), ("ends", ends)):
            docs.create_model(name, function)
            with pytest.raises(SuperduperError) as told:
                docs.model(name).predict(1)
            day.said.append(str(told.value))
        with working(day.folder / "work.log", environment):
            imputation = docs.create_imputation(
                model="model", model_key="x", target="target", target_key="y",
                loss="loss", metrics=["accuracy"], max_epochs=2,
            )  # fmt: skip
            imputation.wait(timeout=120, progress=False)
            until(lambda: docs.find_one(79).get("y"), what="a filled document")
            day.said.append(str(docs.explain(79, "y")))
    with (
        superduper_client.connect(serving.ready["url"], WRONG) as client,
        pytest.raises(Unauthorized) as told,
    ):
        client["main"]["docs"].find_one()
    day.said.append(str(told.value))


def found_in(text: bytes | str, secrets: dict[str, str]) -> set[str]:
    """The names of the secrets that stand in a text, as they are or in base64."""
    raw = text.encode(errors="replace") if isinstance(text, str) else text
    forms = {
        (name, form)
        for name, secret in secrets.items()
        for form in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="))
    }
    return {name for name, form in forms if form in raw}


def test_nothing_that_was_said_holds_a_secret(day: Day) -> None:
    assert len(day.said) > 300
    for text in day.said:
        assert found_in(text, day.secrets) == set(), text[:300]


def test_no_file_but_its_own_holds_a_secret(day: Day) -> None:
    keys = set((day.folder / "home" / "keys").glob("*.key"))
    own = {day.store / "key.pem", day.folder / "tls" / "key.pem", *keys}
    files = [path for path in day.folder.rglob("*") if path.is_file()]
    assert own <= set(files)
    assert {path for path in files if found_in(path.read_bytes(), day.secrets)} == own
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys)
    logs = {path.name for path in files if path.suffix == ".log" and path.stat().st_size}
    assert logs == {"serve.log", "tls.log", "work.log"}


def test_of_tokens_the_store_has_hashes_only(day: Day) -> None:
    raw = b"".join(path.read_bytes() for path in (day.store / "s").rglob("*") if path.is_file())
    assert PLAIN.encode() in raw, "the files can be searched"
    for name in ("first token", "reader's token"):
        secret = day.secrets[f"{name}, its end"]
        assert sha256(secret.encode()).hexdigest().encode() in raw
        assert secret.encode() not in raw


def test_no_process_was_started_with_a_secret_on_its_command_line(day: Day) -> None:
    assert any("fork_server_main" in line for line in day.seen.command_lines)
    for line in day.seen.command_lines:
        assert found_in(line, day.secrets) == set(), line


def test_no_process_of_ours_hands_its_secrets_on(day: Day) -> None:
    assert len(day.seen.environments) > 3
    for environment in day.seen.environments.values():
        assert found_in(environment, day.secrets) == set()
        assert "SUPERDUPER_" not in environment
