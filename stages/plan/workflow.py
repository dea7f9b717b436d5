"""What the Snakefile needs besides the plan: its own process and Snakemake's command line."""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from stages.runtime.checkout import CHECKOUT, CODE
from stages.runtime.code import EXPECTED, code_digest
from stages.runtime.errors import JobError, UsageError
from stages.runtime.lease import visible_devices
from stages.runtime.model import PLACES
from stages.runtime.text import read_yaml


def check_files(paths: Iterable[Path | str]) -> None:
    """Validate config files before Snakemake reads them.

    Raises UsageError for a file on which Snakemake would end in a traceback, and for a duplicate key. Snakemake itself
    reports a missing file.
    """
    for path in paths:
        if os.path.isfile(path):
            config = read_yaml(Path(path))
            if config is not None and not isinstance(config, dict):
                raise UsageError(f"the config {path} is no table", "write keys such as runs: at its top")


def run_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the runs in a config that is not validated yet."""
    runs = config.get("runs")
    return list(runs) if isinstance(runs, Mapping) else []


def keep_runs(config: dict[str, Any], given: Sequence[str]) -> None:
    """If runs are `given` by --configfile or --config, remove the others from `config`: those of config.yaml alone."""
    if given and isinstance(config.get("runs"), Mapping):
        config["runs"] = {name: config["runs"][name] for name in given}


def model_places(config: Mapping[str, Any]) -> dict[str, set[str]]:
    """Where the weights of each model are, as keys of its declaration, in a config that is not validated yet."""
    models = config.get("models")
    declared = models.items() if isinstance(models, Mapping) else ()
    return {name: set(PLACES).intersection(entry) for name, entry in declared if isinstance(entry, Mapping)}


def keep_places(config: Mapping[str, Any], given: Mapping[str, set[str]]) -> None:
    """Remove the places of models in config.yaml from `config`, where --configfile or --config gives others: `given`."""
    for name, places in given.items():
        for other in set(PLACES) - places if places else ():
            config["models"][name].pop(other, None)


def count_workers(limits: Mapping[str, Any]) -> int:
    """Number of jobs that Snakemake runs at once: its GPUs, else its cores or cluster nodes.

    Without --cores, `-j 3` means three cores; for a cluster, and for every dry run, it means three nodes.
    """
    if "gpu" in limits:
        return limits["gpu"].value
    return max(limits[name].value or 1 for name in ("_cores", "_nodes"))


def explain_devices(limits: Mapping[str, Any]) -> str:
    """A sentence about the GPUs of this machine that jobs will use; "" if there is one for each job that needs one.

    Raises UsageError for a variable that names GPUs wrongly.
    """
    try:
        count = len(visible_devices())
    except JobError as error:
        raise UsageError(error.reason, error.remedy) from None
    asked = limits["gpu"].value if "gpu" in limits else None
    if not count:
        return "no GPU is visible on this machine: models run on the CPU"
    if asked is None:
        return f"{count} GPUs are visible: jobs share them by lease; --resources gpu={count} runs no more jobs than that"
    if asked > count:
        return f"--resources gpu={asked}, and {count} GPUs are visible: the other jobs wait until one is free"
    return ""


def refuse_delete(arguments: Iterable[str]) -> None:
    """Raise UsageError for --delete-all-output and similar options: the results are not outputs of Snakemake's rules.

    Snakemake does not pass such a request on to the workflow, so the arguments of the process are read.
    """
    if any(argument.startswith("--delete-") for argument in arguments):
        raise UsageError(
            "--delete-all-output and --delete-temp-output delete no result here", "remove the folder of the run"
        )


def asks_report(arguments: Iterable[str]) -> bool:
    """Whether Snakemake is asked for its report. It does not tell the workflow, so the arguments of the process are read."""
    return any(argument.partition("=")[0] == "--report" for argument in arguments)


def own_stages(deployed: bool, is_main_process: bool) -> str:
    """The shell words before the name of a stage.

    They run the stage of this code with this interpreter, because the PATH may hold other programs of that name and the
    working directory other packages. If stages are `deployed` in images or environments, the program kinemake there runs
    them; envs/*.yaml install what the variable KINEMAKE_INSTALL says, with the versions in the folder KINEMAKE.

    The main process passes the digest of its code to all others in a variable, and stages with other code refuse to work.
    """
    if is_main_process:
        os.environ[EXPECTED] = code_digest()
    if deployed:
        os.environ |= {"KINEMAKE": str(CHECKOUT), "KINEMAKE_INSTALL": installing()}
        return "kinemake "
    path = os.pathsep.join(filter(None, (str(CODE), os.environ.get("PYTHONPATH"))))
    return f"PYTHONPATH={shlex.quote(path)} {shlex.quote(sys.executable)} -P -m stages."


def installing() -> str:
    """What pip installs in an environment of a stage: this checkout, else the published package of this version."""
    return f"-e {CHECKOUT}" if CODE == CHECKOUT else "kinemake"


def name_user() -> None:
    """Set a name for a user without one, as in many containers, because Snakemake needs it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def end_on_sigterm() -> None:
    """On SIGTERM, which Slurm and systemd send, end this process and its stages in order, as on Ctrl-C at a terminal.

    Snakemake's own handler can wait forever for a lock that the interrupted thread holds.
    """

    import psutil  # not in the images of the stages, which import this package for its tables

    def end(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.terminate()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


def end_at_once_on_sigterm() -> None:
    """On SIGTERM, end this process as other programs end: after the work, nothing has to be put in order."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
