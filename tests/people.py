"""Other users of this machine, started by root: user numbers without an account, with their own groups, umask and home."""

import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import pytest

from tests.workflow.conftest import Project

GROUP = 60_100  # the group of all of them
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


class Person(Project):
    """A user with a working folder."""

    def __init__(self, folder: Path, uid: int, umask: int, models: dict, root: Path):
        super().__init__(folder, models, root)
        self.identity = {"user": uid, "group": uid, "extra_groups": [GROUP], "umask": umask}
        (folder / "home").mkdir()
        for path in (folder, folder / "home"):
            os.chown(path, uid, uid)
            path.chmod(0o755)

    def start(self, *arguments, program: str = "snakemake", environment: dict = {}, **options) -> subprocess.Popen:
        """Start Snakemake, or another program, as this user."""
        python, paths = interpreter(self.identity["user"])
        if program == "snakemake":
            program, arguments = python, ("-m", "snakemake", "--snakefile", self.root / "Snakefile", *arguments)
        overrides = {
            "HOME": str(self.folder / "home"),
            "PYTHONPATH": os.pathsep.join([str(self.root), *paths]),
            **environment,
        }
        inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "OMP_NUM_THREADS", "LANG")}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [program, *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=self.folder, env={**inherited, **overrides}, **streams, **self.identity, **options
        )


@cache
def interpreter(uid: int) -> tuple[str, list[str]]:
    """A Python that this user may run, and its paths to the packages installed here. Skips the test if there is none."""
    site = [sysconfig.get_path("purelib")]
    for python, paths in ((sys.executable, []), (sys.executable, site), ("/usr/bin/python3", site)):
        command = [python, "-c", f"import sys, av, numpy, snakemake; assert sys.version_info[:2] == {sys.version_info[:2]}"]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "HOME": "/", "PATH": os.environ["PATH"]}
        try:
            process = subprocess.run(
                command, user=uid, group=uid, extra_groups=[], env=environment, cwd="/", capture_output=True
            )
        except OSError:
            continue
        if process.returncode == 0:
            return python, paths
    pytest.skip(f"no other user may run {os.path.realpath(sys.executable)}, and no other Python has its packages")
