"""Calls of Kinemake's commands: as a user types them, and of Snakemake with Kinemake's Snakefile."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from typing import Any

from stages.runtime.checkout import CHECKOUT, CODE

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command_line(*words: str) -> str:
    """A command as a user types it in a shell: `verify FILM` in a checkout, `kinemake verify FILM` elsewhere."""
    return shlex.join(words if CODE == CHECKOUT else ("kinemake", *words))


def snakemake_line(*arguments: str) -> str:
    """A call of Snakemake as a user types it in the working folder, which finds its Snakefile only in a checkout."""
    program = ("snakemake",) if os.path.samefile(".", CHECKOUT) else ("kinemake", "run")
    return shlex.join((*program, *arguments))


def snakemake_program(*arguments: str) -> list[str]:
    """The words that start Snakemake with Kinemake's Snakefile."""
    return [sys.executable, "-m", "snakemake", "--snakefile", str(CHECKOUT / "Snakefile"), *arguments]


def run_snakemake(*arguments: str) -> int:
    """Run Snakemake until it ends. Returns its exit code.

    Signals that end this process are passed on, once, to Snakemake and its jobs, which have a process group of their own:
    Snakemake is waited for, since it unlocks the working folder.
    """
    process: subprocess.Popen | None = None

    def pass_on(number: int, _: Any) -> None:
        if process and process.poll() is None:
            os.killpg(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in ENDING}
    try:
        process = subprocess.Popen(snakemake_program(*arguments), process_group=0)
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
