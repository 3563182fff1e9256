"""Becomes a server: prepares this process, then replaces it with the program given.

Run as a script by `proxy.embedded.process` instead of a `preexec_fn`, which may deadlock in a parent with
threads. The process id stays the same through the exec, so the parent's handle is the server's.

Arguments: identity, the number of the signal to receive when the parent dies (0: none), the parent's pid,
`--`, the program and its arguments. Identities:

- `same`: no change.
- `namespace`: a new user namespace in which this uid appears as 1000. Postgres refuses to run as root; so it
  sees an ordinary user while the kernel still sees the owner of the files, and no account is made and no file
  changes hands.
- `nobody`: setuid to `nobody`, keeping only CAP_DAC_OVERRIDE, without which binaries and data below a
  private home directory would be out of reach. For containers that refuse namespaces.

Exits with 71 if the identity cannot be taken, with 72 if the parent is gone already.
"""

import ctypes
import os
import pwd
import sys
from typing import NoReturn

IDENTITY_REFUSED = 71
PARENT_GONE = 72

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAP_VERSION_3 = 0x20080522
_NAMESPACE_UID = 1000


def _call(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _enter_namespace() -> None:
    uid = os.geteuid()
    _call("unshare", _CLONE_NEWUSER)
    with open("/proc/self/uid_map", "w", encoding="ascii") as uid_map:  # noqa: PTH123 (pathlib costs start-up time)
        uid_map.write(f"{_NAMESPACE_UID} {uid} 1")


def _keep_dac_override() -> None:
    bit = 1 << _CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    _call("capset", ctypes.byref(header), ctypes.byref(data))
    raise_ambient = [ctypes.c_ulong(v) for v in (_PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)]
    _call("prctl", _PR_CAP_AMBIENT, *raise_ambient)


def _become_nobody() -> None:
    account = pwd.getpwnam("nobody")
    _call("prctl", _PR_SET_KEEPCAPS, *(ctypes.c_ulong(v) for v in (1, 0, 0, 0)))
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    try:
        _keep_dac_override()
    except OSError as error:  # works all the same where every parent directory is open
        print(f"tollhouse: without CAP_DAC_OVERRIDE: {error}", file=sys.stderr)


def _take_identity(identity: str) -> None:
    if identity == "namespace":
        _enter_namespace()
    elif identity == "nobody":
        _become_nobody()


def main(argv: list[str]) -> NoReturn:
    identity, death_signal, parent_pid, _, *command = argv
    try:
        _take_identity(identity)
    except (OSError, KeyError) as error:
        print(f"tollhouse: cannot take identity {identity!r}: {error}", file=sys.stderr)
        sys.exit(IDENTITY_REFUSED)
    if int(death_signal) and sys.platform == "linux":
        # A change of credentials clears it, so it comes last; a parent that died before it sends nothing.
        _call("prctl", _PR_SET_PDEATHSIG, *(ctypes.c_ulong(v) for v in (int(death_signal), 0, 0, 0)))
        if os.getppid() != int(parent_pid):
            sys.exit(PARENT_GONE)
    os.execv(command[0], command)  # noqa: S606 (becoming that program is the point)


if __name__ == "__main__":
    main(sys.argv[1:])
