"""The wheel also holds the files of the checkout that the pipeline needs, in the folder kinemake beside `stages`."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CODE_ONLY = "KINEMAKE_CODE_ONLY"  # environment variable, for containers/build.py
FILES = ("Snakefile", "config.yaml", "config", "envs", "examples", "models", "profiles", "schemas", "workflow")


class BuildWithFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode or os.environ.get(CODE_ONLY):  # the checkout has them, and an image needs none
            return
        for name in FILES:
            source, target = Path(__file__).with_name(name), Path(self.build_lib, "kinemake", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_file():
                shutil.copyfile(source, target)
            else:
                ignored = shutil.ignore_patterns("__pycache__", ".snakemake", "results")
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)


setup(cmdclass={"build_py": BuildWithFiles})
