"""The pipeline as users run it: the program `snakemake` in a folder with a config, on tiny models with random weights."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from examples import toy_family
from tests import preloaded, zoo
from tests.commands import events

ROOT = Path(__file__).parents[2]
INSTALLED = Path(sys.executable).parent
ONE_WORKER = ("--resources", "gpu=1", "--cores", 2)  # one shard of up to 16 clips
TINY = {"size": "32*32", "frame_num": 5, "steps": 2, "max_new_tokens": 4, "seed": 7}


class Project:
    """A folder with a config.yaml. `root` is the checkout whose Snakefile makes its films."""

    programs = INSTALLED  # the folder of the programs that it starts

    def __init__(self, folder: Path, models: dict, root: Path = ROOT):
        self.folder, self.models, self.root = folder, models, root
        folder.mkdir(parents=True, exist_ok=True)

    def configure(self, results: str = "results", store: str = "results/store", resources: dict = {}, **runs) -> None:
        """Write config.yaml. The films of a run are scored only if it says so: most tests count items and jobs."""
        runs = {name: {"scores": [], **run} for name, run in runs.items()}
        config = {"models": self.models, "results": results, "store": store, "resources": resources, "runs": runs}
        self.path("config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))

    def start(self, *arguments, program: str = "snakemake", path: Path | None = None, **options) -> subprocess.Popen:
        """Start a program of this environment. `path` is a folder of other programs, which come first on the PATH."""
        if program == "snakemake":
            arguments = ("--snakefile", self.root / "Snakefile", *arguments)
        command = [str(self.programs / program), *map(str, arguments)]
        folders = [*([path] if path else []), self.programs, os.environ["PATH"]]
        environment = {**preloaded.ENVIRONMENT, **os.environ, "PYTHONPATH": str(self.root)}
        environment["PATH"] = os.pathsep.join(map(str, folders))
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # a process in the background of a shell ignores Ctrl-C, and so would its children
        options |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        return subprocess.Popen(command, cwd=self.folder, env=environment, **streams, **options)

    def run(self, *arguments, fails: int = 0, **options) -> str:
        """Run a program to its end and return its standard error. `fails` is the expected exit code."""
        return finish(self.start(*arguments, **options), fails)[1]

    def output(self, *arguments) -> str:
        """The standard output of `snakemake`, where a dry run lists its jobs."""
        return finish(self.start(*arguments))[0]

    def path(self, name: str) -> Path:
        return self.folder / name

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file except Snakemake's own, by path."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
        return {str(path.relative_to(self.folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}

    def log(self, run: str, job: str) -> list[dict]:
        """The events of a job's log."""
        return events(self.path(f"results/{run}/steps/logs/{run}.{job}.log").read_text())

    def shards(self, run: str) -> dict[str, dict]:
        """The event `shard` of every job of a run that has a log, by job."""
        logs = self.path(f"results/{run}/steps/logs").glob("*.log")
        names = sorted(path.name.removeprefix(f"{run}.").removesuffix(".log") for path in logs)
        return {name: next(line for line in self.log(run, name) if line["event"] == "shard") for name in names}

    def read(self, name: str) -> dict:
        return json.loads(self.path(f"results/{name}").read_text())

    def records(self, name: str) -> dict[str, dict]:
        """The provenance of a result, by stage."""
        return {record["stage"]: record for record in self.read(name)["provenance"]}


def finish(process: subprocess.Popen, fails: int = 0) -> tuple[str, str]:
    """Wait for a program to end and return its standard output and standard error. `fails` is the expected exit code."""
    out, err = process.communicate()
    assert process.returncode == fails, out + err
    return out, err


def item_counts(report: str) -> tuple[int, ...]:
    """Items made, reused and failed, by the summary of a run."""
    return tuple(map(int, re.search(r"items: (\d+) made, (\d+) reused from the store, (\d+) failed", report).groups()))


@pytest.fixture(scope="session", autouse=True)
def preloaded_projects(preloaded_programs):
    """Projects start the preloaded programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Project, "programs", preloaded_programs)
        yield


@pytest.fixture(scope="module")
def installed_programs(preloaded_projects):
    """Projects start the programs themselves, whose processes are children of those that start them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Project, "programs", INSTALLED)
        yield


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout that also has the toy family."""
    return toy_family.checkout(tmp_path_factory.mktemp("toy") / "checkout")


@pytest.fixture
def toy_project(tmp_path, checkout):
    """A project with a model of the toy family and the equal videos a and b."""
    project = Project(tmp_path, {"grey": {"family": "toy", "path": "grey"}}, root=checkout)
    toy_family.weights(project.path("grey"))
    for name in "ab":
        zoo.plain(project.folder, f"{name}.mp4", frames=4, size=(32, 32))
    return project


@pytest.fixture(scope="session")
def models(tiny_wan, tiny_vlm):
    """Declarations of the tiny models for a config."""
    small = {"family": "wan", "dtype": "float32", "sizes": ["32*32"]}
    return {
        "two-experts": {**small, "variant": "14b", "path": str(tiny_wan["14b"])},
        "one-expert": {**small, "variant": "5b", "path": str(tiny_wan["5b"])},
        "eye": {"family": "vlm", "path": str(tiny_vlm), "dtype": "float32"},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory, models):
    """A project of the test module."""
    return Project(tmp_path_factory.mktemp("project"), models)


def frame_count(film: Path, size=(32, 32)) -> int:
    """Number of frames of a film as the program ffmpeg decodes it."""
    return len(zoo.rgb_by_ffmpeg(film, size))
