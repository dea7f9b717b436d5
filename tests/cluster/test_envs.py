"""The environments of --sdm conda, tested without conda's channels: the packages that pip installs in them."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
import yaml

from stages.plan.workflow import installing
from stages.runtime.stages import STAGES
from tests.workflow.conftest import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ENVIRONMENTS = sorted(path.stem for path in (ROOT / "envs").glob("*.yaml"))


def test_each_extra_of_a_stage_has_a_conda_environment():
    assert {stage.extra for stage in STAGES.values()} | {"train", "weights"} == set(ENVIRONMENTS) <= set(EXTRAS)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_pip_in_a_conda_environment_installs_the_checkout(name, tmp_path):
    """Conda passes these lines to pip in a file. The plan sets the variables in them."""
    dependencies = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())["dependencies"]
    (tmp_path / "requirements.txt").write_text("\n".join(dependencies[-1]["pip"]))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    process = subprocess.run(
        [*command, "--report", "-", "-r", "requirements.txt"],
        cwd=tmp_path,
        env={**os.environ, "KINEMAKE": str(ROOT), "KINEMAKE_INSTALL": installing()},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    (package,) = json.loads(process.stdout)["install"]
    assert package["metadata"]["name"] == "kinemake" and package["requested_extras"] == [name]
    assert package["download_info"]["url"] == ROOT.as_uri() and package["download_info"]["dir_info"]["editable"]
