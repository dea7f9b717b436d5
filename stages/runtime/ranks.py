"""Further processes of a job, called ranks, each with a GPU of its own.

A rank makes an object of a class, and calls its methods when the process of the stage asks for it. Calls and results go
through a pair of sockets that only the two processes have, so nothing listens on a port and no file is written. A rank ends
with the process of the stage, however that ends: the kernel kills it. It holds the locks of the leased GPUs too, so no GPU
is free before its last user is gone.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from stages.runtime.checkout import CODE
from stages.runtime.device import gpu_of_rank
from stages.runtime.errors import JobError, KinemakeError, one_line
from stages.runtime.faults import job_fault, ran_out_of_memory
from stages.runtime.locks import held
from stages.runtime.log import about, log_about
from stages.runtime.resident import RESIDENTS
from stages.runtime.worker import import_class

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
AGAIN = "mend that and run again: what is finished is kept"


class Rank:
    """A process on leased GPU `number`, counted from 0, with an object of the class `served` ("module:Class").

    The object is made of the arguments, and of its torch device as the last one: "cpu" or "cuda". The process ends with this
    Rank. Raises JobError if `device`, that of this process, is a single GPU.
    """

    def __init__(self, number: int, device: str, served: str, *arguments: Any):
        self._number, self._calls = number, itertools.count()
        paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
        visible = {"CUDA_VISIBLE_DEVICES": gpu_of_rank(number, device)}
        self.channel, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                env={**os.environ, **visible, "PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=(theirs.fileno(), *held()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self.end = weakref.finalize(self, end, self._process, self.channel)
        self._send((number, RESIDENTS.keeps, served, (*arguments, device)))

    def begin(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Begin a call of a method of the object, with as many threads as here.

        Returns a function that waits for the call and returns its result. It raises the method's KinemakeError or lack of
        memory, and JobError for any other error and for a process that ended. Tensors must be in main memory.
        """
        import torch

        number = next(self._calls)
        self._send((number, about(), torch.get_num_threads(), method, arguments))
        return partial(self._result, number)

    def _send(self, message: Any) -> None:
        try:
            self.channel.send_bytes(pickle.dumps(message))
        except OSError:
            raise self.ended() from None

    def _result(self, call: int) -> Any:
        number = -1
        while number != call:  # an earlier call may have been given up
            try:
                number, error, result = pickle.loads(self.channel.recv_bytes())
            except (EOFError, OSError):
                raise self.ended() from None
        if error:
            raise error
        return result

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ended(self) -> JobError:
        """The error that says how the process ended, for which it waits."""
        code = self._process.wait()  # it closes its end of the channel only by ending
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return JobError(f"the process of GPU {self._number + 1} of this job, its rank {self._number}, {how}", AGAIN)


class Team:
    """`count` ranks that do each call together, and may wait for one another.

    The objects are made of the arguments, their rank, `count`, the path of an empty file that only they use, and the device,
    see `Rank`.
    """

    def __init__(self, count: int, device: str, served: str, *arguments: Any):
        descriptor = os.memfd_create("ranks")  # a file in memory, of which nothing is left when the last process ends
        weakref.finalize(self, os.close, descriptor)
        shared = (count, f"/proc/{os.getpid()}/fd/{descriptor}")
        self._ranks = [Rank(number, device, served, *arguments, number, *shared) for number in range(count)]

    def call(self, method: str, *arguments: Any) -> Any:
        """Let all call a method, and return the result of rank 0.

        Raises the KinemakeError of the method, and JobError for any other. The team has ended then, because the others may
        wait for the rank that failed.
        """
        try:
            waiting = {rank.channel: rank.begin(method, *arguments) for rank in self._ranks}
            results = {}
            while waiting:
                for channel in [one for one in wait(list(waiting)) if isinstance(one, Connection)]:
                    results[channel] = waiting.pop(channel)()
            return results[self._ranks[0].channel]
        except Exception as error:
            ended = [rank for rank in self._ranks if rank.has_ended()]  # which the others may have noticed first
            reason = ended[0].ended() if ended else error
            for rank in self._ranks:
                rank.end()
            if isinstance(reason, KinemakeError):
                raise reason from None
            raise JobError(f"a rank failed ({one_line(error)})", "use a smaller size, fewer frames or more GPUs") from error


def end(process: subprocess.Popen, channel: Connection) -> None:
    """End a rank, which has nothing to save."""
    channel.close()
    process.kill()
    process.wait()


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, whose process id is `parent`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent


def serve(channel: Connection) -> None:
    """Make the object of a rank and do its calls, until the channel is closed."""
    import torch

    rank, RESIDENTS.keeps, served, arguments = pickle.loads(channel.recv_bytes())
    thing = import_class(served)(*arguments)
    while True:
        try:
            number, facts, threads, method, arguments = pickle.loads(channel.recv_bytes())
        except EOFError:
            return
        torch.set_num_threads(threads)  # sums on a CPU depend on it
        error, result = None, None
        try:
            with log_about(**facts, rank=rank):
                result = getattr(thing, method)(*arguments)
        except Exception as raised:
            error = reported(raised, rank)
        channel.send_bytes(pickle.dumps((number, error, result)))


def reported(error: Exception, rank: int) -> Exception:
    """The error of a rank as the process of the stage is to raise it."""
    if isinstance(error, KinemakeError) or ran_out_of_memory(error):
        return error
    if not (reason := job_fault(error)):
        traceback.print_exc()
        reason = f"unexpected {type(error).__name__}: {one_line(error)}"
    return JobError(f"rank {rank} failed ({reason})", AGAIN)


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    serve(Connection(int(sys.argv[1])))
