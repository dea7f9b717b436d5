"""Calls of Kinemake's commands: as a user types them, and of Snakemake with Kinemake's Snakefile."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

from stages.runtime.checkout import CHECKOUT, CODE


def command_line(*words: str) -> str:
    """A command as a user types it in a shell: `verify FILM` in a checkout, `kinemake verify FILM` elsewhere."""
    return shlex.join(words if CODE == CHECKOUT else ("kinemake", *words))


def snakemake_line(*arguments: str) -> str:
    """A call of Snakemake as a user types it in the working folder, which finds its Snakefile only in a checkout."""
    program = ("snakemake",) if os.path.samefile(".", CHECKOUT) else ("kinemake", "run")
    return shlex.join((*program, *arguments))


def run_snakemake(*arguments: str) -> int:
    """Run Snakemake until it ends. Returns its exit code.

    Ctrl-C in a terminal reaches Snakemake by itself. It is waited for, since it ends its jobs and unlocks the folder.
    """
    program = [sys.executable, "-m", "snakemake", "--snakefile", str(CHECKOUT / "Snakefile")]
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which Snakemake would inherit
    process = subprocess.Popen([*program, *arguments])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send_signal(number))
    return process.wait()
