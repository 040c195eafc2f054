"""Run the app with uvicorn: one address, a ready line, a graceful end."""

import asyncio
import gc
import ipaddress
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from superduper_server.group import Alone, Group
from superduper_server.limits import Limits
from superduper_server.traces import tracer_of_settings

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15
BACKLOG = 2048
HANDSHAKE_SECONDS = 5.0
GC_THRESHOLDS = (50_000, 20, 100)


class Server(uvicorn.Server):
    """Serves one service on one socket; says when it is ready, and ends gracefully."""

    def __init__(
        self,
        service: Service,
        bound: socket.socket | None,
        *,
        insecure: bool,
        register_code: bool,
        tls: tuple[str, str] | None = None,
        limits: Limits | None = None,
        group: Group | None = None,
    ) -> None:
        """Without a socket, another process of the group accepts its connections."""
        limits = limits or Limits.from_settings()
        self._group = group or Alone.of(service)
        self._tracer = tracer_of_settings()
        app = build_app(
            service,
            insecure=insecure,
            register_code=register_code,
            limits=limits,
            tracer=self._tracer,
            group=self._group,
        )
        connections = Connections(limits, app.state.fast, self._group.ledger)
        super().__init__(_config(app, connections, tls))
        self._service = service
        self._bound = bound
        self._scheme = "https" if tls else "http"
        self._handshake_seconds = limits.head_seconds if tls else None
        self._taking: set[asyncio.Task[None]] = set()
        self.when_ready: Callable[[], None] | None = None
        self.backend: Backend = app.state.backend

    @property
    def url(self) -> str:
        """Where it is reached."""
        assert self._bound is not None
        return url_of(self._bound, self._scheme)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop, finish what was begun, close the service."""
        bound = [] if self._bound is None else [self._bound]
        try:
            with _signals_survived():
                super().run(sockets or bound)
        finally:
            for each in bound:
                each.close()
            self._service.close()
            if self._tracer is not None:
                self._tracer.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup([])  # uvicorn would give TLS handshakes a minute
        self.started = False  # nobody listens yet
        loop, tls = asyncio.get_running_loop(), self.config.ssl
        for each in sockets or []:
            server = await loop.create_server(
                self._protocol,
                sock=each,
                ssl=tls,
                backlog=self.config.backlog,
                ssl_handshake_timeout=self._handshake_seconds,
            )
            self.servers.append(server)
        if threading.current_thread() is threading.main_thread():
            settle()  # in a thread the process is somebody else's
        await self._group.open(self._take)
        self.started = True
        if self.when_ready is not None:
            self.when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what would never end by itself, then let the rest finish."""
        # uvicorn waits for every connection, and a follower of a job does not hang up.
        self.backend.stop()
        await self._group.shut()
        if self._taking:
            await asyncio.wait(self._taking, timeout=HANDSHAKE_SECONDS)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end."""
        return self._group.is_lost or await super().on_tick(counter)

    def _take(self, connection: socket.socket) -> None:
        """Serve a connection that was accepted elsewhere."""
        task = asyncio.get_running_loop().create_task(self._begin(connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def _begin(self, connection: socket.socket) -> None:
        with suppress(OSError):  # it is closed already, or no TLS is spoken
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self.config.ssl,
                ssl_handshake_timeout=self._handshake_seconds,
            )


def url_of(bound: socket.socket, scheme: str) -> str:
    """The URL of what listens on a socket."""
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def settle() -> None:
    """Get ready for many short turns of the loop, in a process that is ours.

    What is there now stays for good, so it is taken out of the garbage collector's way.
    """
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
    check(host, insecure=insecure, insecure_bind=insecure_bind, tls=tls)
    register_code = may_register(host, register_code)
    bound = listen(host, port)
    return Server(Service(database), bound, insecure=insecure, register_code=register_code, tls=tls)


def check(host: str, *, insecure: bool, insecure_bind: bool, tls: tuple[str, str] | None) -> None:
    """Raise InvalidInput if nothing may listen so."""
    check_bind(host, insecure=insecure, insecure_bind=insecure_bind or tls is not None)
    if tls is not None:
        _check_certificate(*tls)


def may_register(host: str, told: bool | None) -> bool:
    """Whether code may be registered over an address: as told, else as the setting says.

    Raises InvalidInput if the setting makes no sense.
    """
    if told is not None:
        return told
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
