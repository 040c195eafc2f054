"""System calls that a process with user code has no need of, refused by the kernel (seccomp).

They are the ones by which processes are spied on, by which a process leaves its group (whatever a
child starts is killed with it, at one blow), and by which most holes in the kernel were used. A
list of what is allowed would be stricter, and would break with each new version of torch or CUDA.

A process that is to talk to nobody gets no sockets either, TCP, UDP or other, but those that reach
no further than this machine's processes (Unix) and its kernel (netlink, which libraries look at).

Landlock does not know of a file's mode, owner and attributes, nor of the limits of other processes,
by which these could be ended.
"""

import ctypes
import errno
import socket
import struct

from superduper.jobs.kernel import MACHINE, PR_SET_SECCOMP, prctl

# Names, and numbers on x86-64 and on 64-bit ARM; None where there is no such call.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "unshare": (272, 97),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "iopl": (172, None),
    "ioperm": (173, None),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # What is made by these stays when the child has ended.
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
}
# These do nothing and seem to succeed: whatever copies or unpacks files of its own would fail. Not
# so a file's times: from the answer to that Path.touch learns whether the file is there.
WITHOUT_EFFECT: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
}
# Which column, the number that the kernel has for the machine, those of clone, clone3, socket and
# prlimit64.
MACHINES = {
    "x86_64": (0, 0xC000003E, 56, 435, 41, 302),
    "aarch64": (1, 0xC00000B7, 220, 435, 198, 261),
}
LOCAL_SOCKETS = (socket.AF_UNIX, getattr(socket, "AF_NETLINK", 16))

MODE_FILTER = 2
NEW_USER_NAMESPACE = 0x10000000
X32_CALLS = 0x40000000  # x86-64 has a second set of numbers from here on
LOAD, EQUALS, AT_LEAST, HAS_BITS, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data
ALLOW = 0x7FFF0000
DONE, REFUSE, DENY, UNKNOWN = (
    0x00050000 | number for number in (0, errno.EPERM, errno.EACCES, errno.ENOSYS)
)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def refuse_calls(*, sockets: bool) -> bool:
    """Have the kernel refuse the listed calls to this process and all it starts, for good.

    Without `sockets` it makes none but local ones. Answers False on a machine whose numbers are not
    known here. Needs `no_new_privs`.
    """
    if MACHINE not in MACHINES:
        return False
    code = _filter(*MACHINES[MACHINE], sockets=sockets)
    program = _Program(len(code) // 8, code)
    prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(program))
    return True


def _filter(
    column: int,
    architecture: int,
    clone: int,
    clone3: int,
    make_socket: int,
    set_limits: int,
    *,
    sockets: bool,
) -> bytes:
    """The filter's instructions. Each test is followed by what is answered if it holds."""
    code = [
        _step(LOAD, ARCHITECTURE),
        _step(EQUALS, architecture, otherwise=0, then=1),
        _step(ANSWER, UNKNOWN),  # 32-bit calls
        _step(LOAD, NUMBER),
        *_if(AT_LEAST, X32_CALLS, UNKNOWN),
        # Its flags are out of a filter's sight; the C library then uses clone.
        *_if(EQUALS, clone3, UNKNOWN),
    ]
    for calls, answer in ((REFUSED, REFUSE), (WITHOUT_EFFECT, DONE)):
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                code += _if(EQUALS, number, answer)
    if not sockets:
        code += _only_local(make_socket)
    code += [
        _step(EQUALS, set_limits, otherwise=4),
        _step(LOAD, FIRST_ARGUMENT),
        *_if(EQUALS, 0, ALLOW),  # its own
        _step(ANSWER, REFUSE),
        _step(EQUALS, clone, otherwise=2),
        _step(LOAD, FIRST_ARGUMENT),
        _step(HAS_BITS, NEW_USER_NAMESPACE, otherwise=0, then=1),
        _step(ANSWER, ALLOW),
        _step(ANSWER, REFUSE),
    ]
    return b"".join(code)


def _only_local(make_socket: int) -> list[bytes]:
    kinds = [step for kind in LOCAL_SOCKETS for step in _if(EQUALS, kind, ALLOW)]
    asked = [_step(LOAD, FIRST_ARGUMENT), *kinds, _step(ANSWER, DENY)]
    return [_step(EQUALS, make_socket, otherwise=len(asked)), *asked]


def _if(test: int, value: int, answer: int) -> list[bytes]:
    return [_step(test, value, otherwise=1), _step(ANSWER, answer)]


def _step(operation: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; `then` and `otherwise` are how many of the next ones to leave out."""
    return struct.pack("HBBI", operation, then, otherwise, value)
