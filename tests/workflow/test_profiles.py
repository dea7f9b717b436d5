"""The shipped profiles: Snakemake reads the default one beside --profile, and lets it win."""

import subprocess
import sys

import pytest
import yaml

from tests.workflow.conftest import ROOT

SETTINGS = "retries", "latency_wait", "keep_going", "rerun_incomplete", "scheduler"
ASK = f"""
import sys
from snakemake.cli import parse_args
_, settings = parse_args(sys.argv[1:])
print([getattr(settings, name) for name in {SETTINGS}])
"""


@pytest.mark.parametrize("arguments", [[], ["--profile", "profiles/slurm"]])
def test_what_a_run_is_set_to(arguments):
    if arguments:
        pytest.importorskip("snakemake_executor_plugin_slurm", reason="make test-cluster installs it")
    command = [sys.executable, "-c", ASK, *arguments]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[2, 60, True, True, 'greedy']"


def test_no_setting_of_slurms_is_overruled():
    profiles = {name: yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text()) for name in ("default", "slurm")}
    assert not profiles["default"].keys() & profiles["slurm"].keys()
    assert profiles["slurm"]["executor"] == "slurm" and profiles["slurm"]["slurm-requeue"] is True
