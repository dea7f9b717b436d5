"""Run a command in a user namespace where root is root again: `python namespace.py COMMAND...`, as root.

Building an image needs capabilities that root lacks inside a container. A namespace whose users are mapped one to one to
those outside has them. `unshare --map-root-user` has one user only, but unpacking needs the others.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
SYS_RESOURCE = 1 << 24  # the first capability that Apptainer passes on


def is_needed() -> bool:
    """Whether this process is root and lacks a capability."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return os.geteuid() == 0 and not int(status["CapEff"], 16) & SYS_RESOURCE


def main() -> None:
    """Only a process outside may write the user map, so the parent writes it between two messages with its child."""
    unshared, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        if ctypes.CDLL(None).unshare(NEW_USER | NEW_MOUNTS):
            os._exit(1)
        os.write(unshared[1], b"1")
        os.read(mapped[0], 1)
        os.setgid(0)
        os.setuid(0)
        os.execvp(sys.argv[1], sys.argv[1:])
    os.close(unshared[1])
    if not os.read(unshared[0], 1):
        sys.exit("error: no user namespace can be made here: build on a machine where root has all capabilities")
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text("0 0 65536")
    os.write(mapped[1], b"1")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
