"""Landlock by system calls, and a program that confines itself with it and becomes another one.

Run as a script, by a Python without any package: standard library only. Source:
https://www.kernel.org/doc/html/latest/userspace-api/landlock.html and the kernel's include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
import sys
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_ASK_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _READ_FILE | _READ_DIR
_RUN = _READ | _EXECUTE
_LAST_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14, 5: 15}
"""ABI -> highest bit of the rights over files that the kernel knows; the same since 5."""
_TCP = 0b11  # bind, connect; since ABI 4
_SCOPES = 0b11  # abstract sockets and signals that leave the domain; since ABI 6

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("access_fs", ctypes.c_uint64), ("access_net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """Version of Landlock's interface that the kernel has, 1 or more.

    Raises OSError where there is none: ENOSYS (not built in), EOPNOTSUPP (switched off), EPERM (a filter of calls).
    """
    return _call(_CREATE_RULESET, None, 0, _ASK_VERSION)


def confine(read: Iterable[str], run: Iterable[str], write: Iterable[str]) -> None:
    """This thread, and what it starts, can from now on read these paths, run, or change what is below them: no others.

    `run` and `write` may be read, too. No TCP, and no signal to processes outside, where the kernel can forbid it.
    Processes outside cannot be traced, nor what /proc keeps from tracers be read. Paths that are not there are passed
    over. Raises OSError.
    """
    version = abi()
    every = (2 << _LAST_RIGHT.get(version, 15)) - 1
    rules = _Ruleset(every, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _call(_CREATE_RULESET, ctypes.byref(rules), size, 0)
    try:
        for paths, access in ((read, _READ), (run, _RUN), (write, every & ~_EXECUTE)):
            for path in paths:
                _allow(ruleset, path, access & every)
        if _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl: " + os.strerror(ctypes.get_errno()))
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _OF_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(_PathBeneath(access, place)), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: object) -> int:
    # Variadic in C: each argument must have the width of a register.
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    _libc.syscall.restype = ctypes.c_long
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def main(argument: str) -> None:
    """Confines this process as the JSON says, and becomes its command. Raises OSError, also where that cannot run."""
    asked = json.loads(argument)
    confine(asked["read"], asked["run"], asked["write"])
    os.execve(asked["command"][0], asked["command"], os.environ)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except OSError as error:
        sys.stderr.write(f"cannot be started in a sandbox: {error.strerror}\n")
        sys.exit(126)
