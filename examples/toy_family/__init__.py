"""A model family without a network, and a checkout that has it, for tests and benchmarks of the pipeline alone."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]


def checkout(folder: Path) -> Path:
    """Copy the files that Snakemake needs of this checkout, and add the family and its recipe, one file each."""
    for name in ("stages", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "stages/families/toy").mkdir()
    shutil.copy(Path(__file__).with_name("options.py"), folder / "stages/families/toy")
    shutil.copy(Path(__file__).with_name("recipe.py"), folder / "stages/plan/recipes/toy.py")
    return folder


def weights(folder: Path) -> Path:
    """Write a mid-grey model of the family."""
    folder.mkdir()
    (folder / "tone.txt").write_text("100")
    return folder
