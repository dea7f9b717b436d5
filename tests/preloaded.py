"""A Python that has the libraries imported, for tests that start many programs: each program is a fork of it.

The import of torch, diffusers and transformers takes a process of the pipeline longer than its work on a tiny model does.
`start(folder)` writes `python`, `snakemake` and the other programs of the environment to a folder. A test that runs
them gets processes of its own, with the same arguments, streams, signals and exit codes. Each of them imports the packages
of the project for itself. A program is a new process of the real Python if its environment has other variables that
libraries read on import, or if it inherits other files than its streams.
"""

import ast
import atexit
import gc
import importlib
import importlib.metadata
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}  # of the programs that are preloaded, unless the tests have another
# What the names of variables that libraries read on import begin with.
READ_ON_IMPORT = ("HF_", "HUGGINGFACE_", "LD_", "OMP_", "PYTHONHASH", "PYTHONUNBUFFERED", "TORCH_", "TRANSFORMERS_")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# The program `python`: it gives its arguments and streams to the server, and ends as the process of the server does.
CLIENT = """#!{python} -IS
import json, os, signal, socket, struct, sys

def relevant(environment):
    return {{name: value for name, value in environment.items() if name.startswith({prefixes!r})}}

def inherited(descriptor):
    try:
        return descriptor > 2 and os.get_inheritable(descriptor)
    except OSError:  # that of the folder which is listed
        return False

if relevant(os.environ) != {environment!r} or any(map(inherited, map(int, os.listdir("/proc/self/fd")))):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
os.umask(umask := os.umask(0))
ignored = [number for number in {signals!r} if signal.getsignal(number) == signal.SIG_IGN]
request = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ), "umask": umask}}
message = json.dumps({{**request, "python": sys.argv[0], "ignored": ignored}}).encode()
socket.send_fds(server, [struct.pack("<q", len(message))], [0, 1, 2])
server.sendall(message)
for number in {signals!r}:
    if number not in ignored:
        signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
status = struct.unpack("<i", server.recv(4))[0]
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) != signal.SIGKILL:
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.WEXITSTATUS(status))
"""


@contextmanager
def start(folder: Path):
    """Serve `python` and the programs of this environment, which are written to `folder`, in the block."""
    address = folder / "socket"
    environment = {**ENVIRONMENT, **os.environ}
    program = CLIENT.format(
        python=sys.executable,
        prefixes=READ_ON_IMPORT,
        environment={name: value for name, value in environment.items() if name.startswith(READ_ON_IMPORT)},
        address=str(address),
        signals=tuple(map(int, FORWARDED)),
    )
    texts = {"python": program}
    for script in importlib.metadata.entry_points(group="console_scripts"):
        call = f"from {script.module} import {script.attr}\nsys.exit({script.attr}())\n"
        texts[script.name] = f"#!{folder}/python\nimport sys\n{call}"
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    command = [sys.executable, "-P", __file__, address]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with (folder / "log").open("w") as log, subprocess.Popen(command, **streams, stderr=log) as process:
        assert process.stdout.read(1), (folder / "log").read_text()
        yield
        process.stdin.close()


def imports() -> Iterator[tuple[str, str]]:
    """The modules that the project's files import from, each with the name that is imported from it, or with ""."""
    for path in (ROOT / "stages").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((name.name, "") for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.module or "", name.name) for name in node.names)


def import_libraries() -> None:
    """Import whatever the project's files import from other packages."""
    for module, name in imports():
        if not module.startswith("stages"):
            with suppress(ImportError, AttributeError):  # an optional package
                imported = importlib.import_module(module)
                if name:
                    getattr(imported, name)  # which a package may import on first use
    importlib.import_module("snakemake.cli")


def serve(address: str) -> dict:
    """Accept programs until the standard input ends. Returns the request in the process that is to run it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the guardians
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    os.write(1, b".")
    while True:
        ready, _, _ = select.select([listening, 0], [], [])
        if 0 in ready:
            os._exit(0)
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return accept(connection)
        connection.close()


def accept(connection: socket.socket) -> dict:
    """Receive a request, start its process and return the request there. This process guards that one until it ends."""
    header, streams, _, _ = socket.recv_fds(connection, 8, 3)
    (length,) = struct.unpack("<q", header)
    request = json.loads(connection.recv(length, socket.MSG_WAITALL))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        for stream in (0, 1, 2, *streams):
            with suppress(OSError):
                os.close(stream)
        os._exit(guard(pid, connection))
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL)
    if signal.SIGINT not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return request


def guard(pid: int, connection: socket.socket) -> int:
    """Forward signals to a process, kill it if its client is gone, and send its status when it ends."""
    ended = os.pidfd_open(pid)
    while True:
        ready, _, _ = select.select([connection, ended], [], [])
        if ended in ready:
            with suppress(OSError):
                connection.sendall(struct.pack("<i", os.waitpid(pid, 0)[1]))
            return 0
        try:
            received = connection.recv(64)
        except OSError:
            received = b""
        for number in received or [signal.SIGKILL]:
            os.kill(pid, number)
        if not received:
            os.waitpid(pid, 0)
            return 0


def run(request: dict) -> None:
    """Run a program in this process as a new Python would."""
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = request["python"]
    arguments = request["arguments"]
    safe = arguments[0] == "-P"
    arguments = arguments[safe:]
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[:0] = [] if safe else [os.getcwd()]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[:0] = [] if safe else [""]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def end(request: dict) -> None:
    """Run a program and end this process, without the seconds in which Python takes the imported libraries apart."""
    code = 0
    try:
        run(request)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import_libraries()
    gc.freeze()
    end(serve(sys.argv[1]))
