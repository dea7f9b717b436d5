"""The wheel in an environment of its own: the command, a first film, and other workflows that import its Snakefile."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from stages.commands import TOOLS, main
from stages.runtime.stages import STAGES
from tests.media.test_marks import ffmpeg_tags

ROOT = Path(__file__).parents[1]
SOURCES = ["Snakefile", "config.yaml", "config", "envs", "examples", "models", "profiles", "schemas", "stages", "workflow"]
BUILT = [*SOURCES, "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"]
FEW_STEPS = {"options": {"steps": 2, "seed": 42}, "fuse": True, "scores": []}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what the wheel is built from, as a repository with the tag v0.1.0."""
    folder = tmp_path_factory.mktemp("sources")
    for name in BUILT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"], [*identity, "tag", "v0.1.0"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", folder, sources], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel and, of this environment, the libraries alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, capture_output=True, env=without_checkout())
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    return folder


def without_checkout() -> dict[str, str]:
    """The environment variables, without one that would show this checkout to programs."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(installed, folder, *command, fails: int = 0, **variables) -> str:
    """Run a program of the environment. Returns what it prints."""
    environment = {**without_checkout(), "PATH": f"{installed}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= variables
    command = [installed / "bin" / command[0], *map(str, command[1:])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def snakemake(installed, folder, *arguments, **options) -> str:
    return run(installed, folder, "python", "-m", "snakemake", "--cores", 2, *arguments, **options)


def few_steps(path: Path, *keys: str) -> None:
    """Let the runs of a config, which are below `keys`, take two steps."""
    config = yaml.safe_load(path.read_text())
    runs = config
    for key in (*keys, "runs"):
        runs = runs[key]
    for entry in runs.values():
        entry |= FEW_STEPS
    path.write_text(yaml.safe_dump(config))


# ------------------------------------------------------------------------------------------------------------ commands


def test_the_wheel_has_one_command_which_collides_with_no_other(installed, tmp_path):
    before = {"python", "python3", f"python3.{sys.version_info.minor}"}
    names = {path.name for path in (installed / "bin").iterdir()} - before
    assert {name for name in names if "ctivate" not in name} == {"kinemake"}
    help_text = run(installed, tmp_path, "kinemake", "--help")
    assert all(re.search(rf"^  {name} ", help_text, re.M) for name in ("init", "run", "film", *STAGES))
    assert "Usage: kinemake concat" in run(installed, tmp_path, "kinemake", "concat", "--help")
    assert "0.1.0" in run(installed, tmp_path, "kinemake", "--version")


def test_the_wheel_is_smaller_than_what_an_index_takes(wheel):
    assert wheel.stat().st_size < 60e6


def test_a_checkout_has_the_same_commands_under_short_names():
    scripts = tomllib.loads((ROOT / "commands/pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {*STAGES, *TOOLS}
    for name, place in scripts.items():
        module, _, attribute = place.partition(":")
        assert main.get_command(None, name) is getattr(import_module(module), attribute)


def test_run_without_a_config_says_how_to_write_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["run", "first"])
    assert result.exit_code == 2
    assert f"error: {tmp_path} has no config.yaml: write one by kinemake init, or give --configfile" in result.output


def test_the_shell_completes_commands(installed, tmp_path):
    said = run(
        installed, tmp_path, "kinemake", _KINEMAKE_COMPLETE="bash_complete", COMP_WORDS="kinemake gen", COMP_CWORD="1"
    )
    assert said.split() == ["plain,generate"]


def test_all_files_name_the_same_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tomllib.loads((ROOT / "commands/pyproject.toml").read_text())["project"]["version"] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f'VERSION = "{version}"' in (ROOT / "Snakefile").read_text()
    assert f"kinemake=={version}" in (ROOT / "envs/constraints.txt").read_text().splitlines()


# --------------------------------------------------------------------------------------------------------------- films


def test_a_first_film(installed, tmp_path):
    said = run(installed, tmp_path, "kinemake", "init")
    assert "config.yaml is written" in said
    few_steps(tmp_path / "config.yaml")
    report = run(installed, tmp_path, "kinemake", "run", "--cores", 2)
    assert "4 made" in report
    assert '"seed": [42]' in ffmpeg_tags(tmp_path / "results/first/red.mp4")["comment"]
    assert "config.yaml exists" in run(installed, tmp_path, "kinemake", "init", fails=2)
    assert "right" in run(installed, tmp_path, "kinemake", "verify", "results/first/red.mp4")
    data = (tmp_path / "results/first/page/data.js").read_text()
    page = json.loads(data[data.index(", {") + 2 : data.rindex("]")])
    for line in page["rows"][0]["commands"]:  # as the page shows them, by what is installed
        run(installed, tmp_path, *shlex.split(line))


def test_the_example_of_a_module_runs_with_the_wheel(installed, tmp_path):
    shutil.copytree(ROOT / "examples/as_module", tmp_path / "mine")
    path = tmp_path / "mine/Snakefile"
    own = "import stages.plan\n\n\n{}".format(path.read_text().replace('"../../Snakefile"', "stages.plan.SNAKEFILE"))
    path.write_text(own)
    few_steps(tmp_path / "mine/config.yaml", "kinemake")
    snakemake(installed, tmp_path / "mine")
    assert len((tmp_path / "mine/checksums.txt").read_text().splitlines()) == 2


# ------------------------------------------------------------------------------------------- remote modules, snakedeploy


REMOTE = """
module kinemake:
    snakefile: "git+file://{repository}/workflow/Snakefile@v0.1.0"
    config: {{"runs": {{"r": {run}}}}}

use rule * from kinemake as kine_*
"""


def test_a_remote_module_works_with_the_package(installed, sources, tmp_path):
    entry = {"recipe": "text2video", "clips": [{"id": "a", "prompt": "a red square"}], "model": "shapes-text2video"}
    (tmp_path / "Snakefile").write_text(REMOTE.format(repository=sources, run={**entry, **FEW_STEPS}))
    snakemake(installed, tmp_path, "results/r/a.mp4")
    assert (tmp_path / "results/r/a.mp4").is_file()


def test_a_remote_module_of_another_version_is_refused(installed, sources, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sources, other)
    text = (other / "Snakefile").read_text()
    (other / "Snakefile").write_text(text.replace('VERSION = "0.1.0"', 'VERSION = "9.9.9"'))
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["commit", "-qam", "newer"], ["tag", "-f", "v0.1.0"]):
        subprocess.run(["git", *identity, *command], cwd=other, check=True, capture_output=True)
    (tmp_path / "Snakefile").write_text(REMOTE.format(repository=other, run={}))
    said = snakemake(installed, tmp_path, "-n", fails=1)
    assert "the Snakefile is of Kinemake 9.9.9, and the installed package of 0.1.0: pip install kinemake==9.9.9" in said


def test_snakedeploy_deploys_the_workflow(installed, sources, tmp_path):
    deploy = pytest.importorskip("snakedeploy.deploy", reason="snakedeploy is not here").deploy
    deploy(str(sources), name="kinemake", tag=None, branch=None, dest_path=tmp_path)
    assert {"workflow", "config", "profiles", "LICENSE"} <= {path.name for path in tmp_path.iterdir()}
    # snakedeploy 0.17 names a local source relative to itself; that of a hosted one is github(...)
    path = tmp_path / "workflow/Snakefile"
    path.write_text(path.read_text().replace('"workflow/Snakefile"', f'"{sources}/workflow/Snakefile"'))
    few_steps(tmp_path / "config/config.yaml")
    assert "first" in snakemake(installed, tmp_path, "-n") and not (tmp_path / "results").exists()
    snakemake(installed, tmp_path)
    assert (tmp_path / "results/first/red.mp4").is_file()


def test_the_catalog_finds_the_words_and_files_that_it_looks_for():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage["software-stack-deployment"]) == {"conda", "apptainer", "apptainer+conda", "report"}
    text = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in text and "workflow" in text
    assert (ROOT / "workflow/Snakefile").is_file() and (ROOT / "config/README.md").is_file()
