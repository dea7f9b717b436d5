"""The shipped profiles: Snakemake reads the default one beside --profile, and lets it win."""

import subprocess
import sys

import yaml

from tests.workflow.conftest import ROOT

EXPECTED = "[2, 60, True, True, 'greedy']"
SETTINGS = "retries", "latency_wait", "keep_going", "rerun_incomplete", "scheduler"
ASK = f"""
import sys
from snakemake.cli import parse_args
_, settings = parse_args(sys.argv[1:])
print([getattr(settings, name) for name in {SETTINGS}])
"""


def settings(*arguments):
    """What `snakemake` is set to by the profiles that it reads for these arguments."""
    command = [sys.executable, "-c", ASK, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def test_what_a_run_is_set_to():
    assert settings() == EXPECTED


def test_no_setting_of_slurms_is_overruled():
    profiles = {name: yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text()) for name in ("default", "slurm")}
    assert not profiles["default"].keys() & profiles["slurm"].keys()
    assert profiles["slurm"]["executor"] == "slurm" and profiles["slurm"]["slurm-requeue"] is True
