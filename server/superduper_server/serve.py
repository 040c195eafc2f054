"""Run the app with uvicorn: one address, a ready line, a graceful end."""

import gc
import ipaddress
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from pymongo.database import Database

from superduper import settings
from superduper.errors import InvalidInput
from superduper.service import Service
from superduper_server.app import build_app
from superduper_server.backend import Backend
from superduper_server.connections import Connections
from superduper_server.limits import Limits
from superduper_server.traces import tracer_of_settings

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15
BACKLOG = 2048
GC_THRESHOLDS = (50_000, 20, 100)


class Server(uvicorn.Server):
    """Serves one service on one socket; says when it is ready, and ends gracefully."""

    def __init__(
        self,
        service: Service,
        bound: socket.socket,
        *,
        insecure: bool,
        register_code: bool,
        tls: tuple[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits.from_settings()
        self._tracer = tracer_of_settings()
        app = build_app(
            service,
            insecure=insecure,
            register_code=register_code,
            limits=limits,
            tracer=self._tracer,
        )
        super().__init__(_config(app, Connections(limits, app.state.fast), tls))
        self._service = service
        self._bound = bound
        self._scheme = "https" if tls else "http"
        self.when_ready: Callable[[], None] | None = None
        self.backend: Backend = app.state.backend

    @property
    def url(self) -> str:
        """Where it is reached."""
        host, port = self._bound.getsockname()[:2]
        return (
            f"{self._scheme}://[{host}]:{port}"
            if ":" in host
            else f"{self._scheme}://{host}:{port}"
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop, finish what was begun, close the service."""
        try:
            with _signals_survived():
                super().run(sockets or [self._bound])
        finally:
            self._bound.close()
            self._service.close()
            if self._tracer is not None:
                self._tracer.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():
            _settle()  # in a thread the process is somebody else's
        if self.started and self.when_ready is not None:
            self.when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what would never end by itself, then let the rest finish."""
        # uvicorn waits for every connection, and a follower of a job does not hang up.
        self.backend.stop()
        await super().shutdown(sockets)


def _settle() -> None:
    """Take what is there now out of the garbage collector's way: it stays for good."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def make_server(
    database: Database[Any],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    insecure: bool = False,
    insecure_bind: bool = False,
    register_code: bool | None = None,
    tls: tuple[str, str] | None = None,
) -> Server:
    """A server of a database, bound to its address; `run()` serves until SIGTERM or SIGINT.

    `tls` names the files of a certificate and its key. Whether code may be registered over it is
    what the setting says, unless it is told: on loopback only, as long as nobody says otherwise.
    Raises InvalidInput if the address cannot be had, or may not be without being told so by name.
    """
    check_bind(host, insecure=insecure, insecure_bind=insecure_bind or tls is not None)
    if tls is not None:
        _check_certificate(*tls)
    if register_code is None:
        register_code = _may_register(host)
    bound = listen(host, port)
    return Server(Service(database), bound, insecure=insecure, register_code=register_code, tls=tls)


def _may_register(host: str) -> bool:
    said = settings.get("REGISTER_CODE").lower()
    if said not in ("auto", "yes", "no"):
        raise InvalidInput(f"SUPERDUPER_REGISTER_CODE={said[:20]!r}: it is auto, yes or no")
    return is_loopback(host) if said == "auto" else said == "yes"


def _check_certificate(certificate: str, key: str) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:  # ssl's own errors are among them
        raise InvalidInput(
            f"{certificate} and {key} are not a certificate and its key (PEM): {error}"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(host: str, *, insecure: bool, insecure_bind: bool) -> None:
    """Refuse what would let strangers in, or let them listen.

    Raises InvalidInput that says what to do instead.
    """
    if is_loopback(host):
        return
    if insecure:
        raise InvalidInput(
            f"--insecure asks for no tokens and is for loopback only, not for {host}"
        )
    if not insecure_bind:
        raise InvalidInput(
            f"on {host} tokens and documents would travel in the clear: pass --tls-certificate and "
            "--tls-key, listen on 127.0.0.1 behind a proxy with TLS, or say --insecure-bind if the "
            "network is your own"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not accept yet; port 0 lets the system choose.

    Raises InvalidInput if the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        raise InvalidInput(
            f"cannot listen on {host} port {port} ({error}): choose another with --host, --port"
        ) from error
    return bound


def _config(app: FastAPI, connections: Connections, tls: tuple[str, str] | None) -> uvicorn.Config:
    certificate, key = tls or (None, None)
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=connections,  # type: ignore[arg-type]  # is only ever called
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.get_number("DRAIN_SECONDS")),
    )


@contextmanager
def _signals_survived() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more: there is still something to close."""

    def note(number: int, frame: FrameType | None) -> None:
        logger.info("ended by %s", signal.Signals(number).name, extra={"event": "server.ended"})

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for the main thread only
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
