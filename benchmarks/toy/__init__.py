"""A kind of model that needs no weights and no GPU, as a checkout that has it: for what is about the pipeline alone."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]


def checkout(folder: Path) -> Path:
    """Copy what Snakemake needs of this checkout, and add the family and its recipe: a file each."""
    for name in ("stages", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    (folder / "stages/models/toy").mkdir()
    shutil.copy(Path(__file__).with_name("options.py"), folder / "stages/models/toy")
    shutil.copy(Path(__file__).with_name("recipe.py"), folder / "stages/plan/recipes/toy.py")
    return folder


def weights(folder: Path) -> Path:
    """A model of the family: mid-grey."""
    folder.mkdir()
    (folder / "tone.txt").write_text("100")
    return folder
