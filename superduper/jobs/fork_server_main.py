"""The fork server: `python -m superduper.jobs.fork_server_main CONTROL`. It must stay one thread.

Each request is one message: `{"start": {...}}` with three file descriptors, answered with the pid,
or `{"reap": pid}`, answered with the exit code.
"""

import contextlib
import gc
import importlib
import json
import os
import socket
import sys
import tempfile
from typing import Any

from superduper.jobs.child_main import serve_child
from superduper.jobs.fork_server import LARGEST_MESSAGE, relabel
from superduper.jobs.kernel import conceal
from superduper.jobs.namespaces import are_permitted

FDS = 3  # socket, lifeline, output


def main() -> None:
    """Serve until the parent is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    are_permitted()  # asked once, while a fork costs little; forks know the answer
    conceal()
    while True:
        data, fds, _, _ = socket.recv_fds(control, LARGEST_MESSAGE, FDS)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            reply = {"code": os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])}
        else:
            reply = _start(request["start"], fds, control)
        for fd in fds:
            os.close(fd)
        control.send(json.dumps(reply).encode())


def _start(order: dict[str, Any], fds: list[int], control: socket.socket) -> dict[str, int]:
    _preload(order["preload"])
    try:
        pid = os.fork()
    except OSError as error:
        return {"errno": error.errno or 0}
    if pid == 0:
        control.close()
        _become_child(order, fds)
    return {"pid": pid}


def _preload(modules: list[str]) -> None:
    """Import what the children need, for all of them; what is missing, the child will tell of."""
    wanted = [name for name in modules if name not in sys.modules]
    for name in wanted:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if wanted:
        gc.collect()
        gc.freeze()  # so that a collection in a fork leaves the shared pages alone


def _become_child(order: dict[str, Any], fds: list[int]) -> None:
    code = 1
    try:
        connection, lifeline, output = fds
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.chdir(order["folder"])
        for name in ("HOME", "TMPDIR"):
            relabel(name, order["folder"])
            os.environ[name] = order["folder"]
        tempfile.tempdir = None  # or else it is the server's own, once somebody has asked for it
        if "numpy.random" in sys.modules:  # the standard library's generator does so by itself
            sys.modules["numpy.random"].seed()
        serve_child(order["entry"], connection, lifeline, order["limits"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):  # user code may have closed them
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
