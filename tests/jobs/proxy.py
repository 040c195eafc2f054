"""A TCP proxy before the store that a test can cut, stall, slow down and mend."""

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards connections to a port of this machine while it is not cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = True
        self._flows = threading.Event()
        self._flows.set()
        self._delay_seconds = 0.0
        self._pairs: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self._open = False
        self._flows.set()
        for one in self._pairs:
            _end(one)
        self._pairs.clear()

    def stall(self) -> None:
        """Hold back all that is sent; connections stay open, and new ones are taken."""
        self._flows.clear()

    def slow(self, seconds: float) -> None:
        """Let each piece that is sent wait so long."""
        self._delay_seconds = seconds

    def mend(self) -> None:
        """Let connections through again; what was held back goes on."""
        self._open = True
        self._delay_seconds = 0.0
        self._flows.set()

    def close(self) -> None:
        """Stop for good."""
        self.cut()
        _end(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._open:
                _end(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # the store is down
                _end(near)
                continue
            self._pairs += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait()
                if self._delay_seconds:
                    time.sleep(self._delay_seconds)
                sink.sendall(data)
        _end(sink)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
