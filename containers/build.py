"""Build the image of every stage: containers/STAGE.sif. Stages with the same dependencies share one file under several
names. An image whose extra includes another extra is built on that image, so that torch is installed once.

Images of the same code, versions and base are kept, so that an interrupted build resumes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from containers import namespace
from stages.runtime.stages import STAGES

HERE = Path(__file__).parent
ROOT, WORK = HERE.parent, HERE / "build"
SOURCES = (HERE / "stage.def", ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / "envs/constraints.txt", ROOT / "stages")
EXTRAS = {name: stage.extra for name, stage in STAGES.items()} | {"train": "train"}
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"  # the wheels are those of the Python that fetches them
COMPRESSION = "-comp gzip -Xcompression-level 1"  # a third of the time, slightly larger, and readable by every kernel
DEBIAN = {"3.11": "bookworm", "3.13": "trixie"}


def parents() -> dict[str, str]:
    """The extra that an extra of pyproject.toml includes, by the including extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    matches = {extra: re.fullmatch(r"kinemake\[(\w+)\]", names[0]) for extra, names in extras.items()}
    return {extra: match[1] for extra, match in matches.items() if match}


PARENTS = parents()


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar="[STAGE]...")
@click.option(
    "--base", default=f"docker://python:{PYTHON}-slim", help="docker://NAME, a folder, or debian. Has this Python."
)
@click.option("--torch-index", default="", help="Index of another build of torch (CPU, or a CUDA version).")
def main(names: Sequence[str], base: str, torch_index: str) -> None:
    if unknown := set(names) - set(EXTRAS):
        raise click.UsageError(f"there is no stage {sorted(unknown)[0]!r}: choose from {', '.join(EXTRAS)}")
    if not shutil.which("apptainer"):
        raise click.UsageError("there is no apptainer on this machine: install it, apptainer.org/docs/admin says how")
    wanted = defaultdict(list)
    for name in names or EXTRAS:
        wanted[EXTRAS[name]].append(name)
    WORK.mkdir(exist_ok=True)
    with open(WORK / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # wait for another build and use its images
        for extra, stages in wanted.items():
            image = get_image(extra, base, torch_index)
            for stage in stages:
                link_image(image, HERE / f"{stage}.sif")
            click.echo(f"{image.stat().st_size / 1e6:6.0f} MB  {', '.join(stages)}")


def get_image(extra: str, base: str, torch_index: str) -> Path:
    """The image of an extra. It is built unless WORK has it."""
    image = WORK / f"{extra}-{digest(extra, base, torch_index)}.sif"
    if not image.is_file():
        for old in WORK.glob(f"{extra}-*.sif"):
            old.unlink()
        parent = PARENTS.get(extra)
        start = ("localimage", str(get_image(parent, base, torch_index))) if parent else bootstrap(base)
        partial = image.with_suffix(".half")
        build(partial, extra, start, wheels(extra, torch_index))
        partial.rename(image)
    return image


def build(image: Path, extra: str, base: tuple[str, str], folder: Path) -> None:
    """Build an image on a base from the wheels in a folder."""
    stages = " ".join(name for name, needs in EXTRAS.items() if needs == extra)
    arguments = {"BOOTSTRAP": base[0], "BASE": base[1], "EXTRA": extra, "STAGES": stages}
    command = ["apptainer", "--silent", "build", "--force", "--bind", f"{folder}:/mnt:ro", "--mksquashfs-args", COMPRESSION]
    command += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    run([*command, str(image), str(HERE / "stage.def")], WORK / f"{extra}.log")


def wheels(extra: str, torch_index: str) -> Path:
    """A folder with the wheels of an extra, among others, and the constraints with which pip fetched them."""
    folder = WORK / "wheels" / hashlib.sha256(torch_index.encode()).hexdigest()[:8]
    for old in folder.glob("kinemake-*.whl"):
        old.unlink()
    index = ["--extra-index-url", torch_index] if torch_index else []
    constraints = ["--constraint", str(ROOT / "envs/constraints.txt")]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--find-links", str(folder), *index, *constraints]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "envs/constraints.txt", folder)
    os.environ["KINEMAKE_CODE_ONLY"] = "1"  # models and other files are those of the checkout that the plan is in
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # of an earlier wheel
    run([*command, "--wheel-dir", str(folder), f"{ROOT}[{extra}]"], WORK / f"{extra}.log")
    return folder


def bootstrap(base: str) -> tuple[str, str]:
    """The bootstrap agent and source of a base for Apptainer. "debian" is built from Debian packages without a registry."""
    if base.startswith("docker://"):
        return "docker", base.removeprefix("docker://")
    return "localimage", str(debian() if base == "debian" else Path(base).absolute())


def debian() -> Path:
    if PYTHON not in DEBIAN:
        raise click.UsageError(f"no release of Debian has Python {PYTHON}: make the .venv with {' or '.join(DEBIAN)}")
    if not shutil.which("mmdebstrap"):
        raise click.UsageError("--base debian needs mmdebstrap: apt install mmdebstrap")
    folder = WORK / f"debian-{PYTHON}"
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".half")
        shutil.rmtree(partial, ignore_errors=True)
        packages = "--include=python3,python3-venv,ca-certificates"
        run(["mmdebstrap", "--quiet", "--variant=minbase", packages, DEBIAN[PYTHON], str(partial)], WORK / "debian.log")
        run(["chown", "-R", "0:0", str(partial)], WORK / "debian.log")  # Apptainer unpacks a base image as one user
        partial.rename(folder)
    return folder


def digest(extra: str, base: str, torch_index: str) -> str:
    """Digest of everything that an image depends on: the code, the definition, the versions and their index."""
    hasher = hashlib.sha256("\n".join((extra, base, torch_index, PYTHON)).encode())
    for file in files(SOURCES):
        hasher.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return hasher.hexdigest()[:16]


def run(command: Sequence[str], log: Path) -> None:
    """Run a command with its output in a file. Raises ClickException with the last lines if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    prefix = [sys.executable, namespace.__file__] if namespace.is_needed() else []
    with open(log, "w") as file:
        status = subprocess.run([*prefix, *command], stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        last = " / ".join(log.read_text().strip().splitlines()[-3:])
        raise click.ClickException(f"{command[0]} failed ({last}): its output is in {log}")


def files(sources: Iterable[Path]) -> list[Path]:
    return sorted(file for source in sources for file in ([source] if source.is_file() else source.rglob("*.py")))


def link_image(image: Path, name: Path) -> None:
    """Give an image another name without a copy. A run that reads the old image there is not disturbed."""
    partial = name.with_suffix(".half")
    partial.unlink(missing_ok=True)
    os.link(image, partial)
    partial.replace(name)
    partial.unlink(missing_ok=True)  # rename does nothing if both are the same file


if __name__ == "__main__":
    main()
