"""The environments of --sdm conda, as far as it can be told without conda's channels: what pip is to do in them."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
import yaml

from stages.runtime.stages import STAGES
from tests.workflow.conftest import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ENVIRONMENTS = sorted(path.stem for path in (ROOT / "envs").glob("*.yaml"))


def test_there_is_one_for_each_kind_of_stage():
    assert {stage.extra for stage in STAGES.values()} | {"train", "weights"} == set(ENVIRONMENTS) <= set(EXTRAS)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_pip_finds_the_checkout_and_its_versions(name, tmp_path):
    """Conda hands pip these lines in a file; the plan sets the variable."""
    dependencies = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())["dependencies"]
    (tmp_path / "requirements.txt").write_text("\n".join(dependencies[-1]["pip"]))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    done = subprocess.run(
        [*command, "--report", "-", "-r", "requirements.txt"],
        cwd=tmp_path,
        env={**os.environ, "KINEMAKE": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["install"]
    assert found["metadata"]["name"] == "kinemake" and found["requested_extras"] == [name]
    assert found["download_info"]["url"] == ROOT.as_uri() and found["download_info"]["dir_info"]["editable"]
