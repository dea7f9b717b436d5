"""The shipped profiles: Snakemake reads the default profile in addition to --profile, and the default one wins."""

import subprocess
import sys

import yaml

from tests.workflow.conftest import ROOT

EXPECTED = "[2, 60, True, True, 'greedy']"
SETTINGS = "retries", "latency_wait", "keep_going", "rerun_incomplete", "scheduler"
PRINT_SETTINGS = f"""
import sys
from snakemake.cli import parse_args
_, settings = parse_args(sys.argv[1:])
print([getattr(settings, name) for name in {SETTINGS}])
"""


def parsed_settings(*arguments):
    """The settings of `snakemake` with these arguments and the profiles that it reads."""
    command = [sys.executable, "-c", PRINT_SETTINGS, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def test_the_default_profile_applies_to_a_run():
    assert parsed_settings() == EXPECTED


def test_the_default_profile_sets_no_key_of_the_slurm_profile():
    profiles = {name: yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text()) for name in ("default", "slurm")}
    assert not profiles["default"].keys() & profiles["slurm"].keys()
    assert profiles["slurm"]["executor"] == "slurm" and profiles["slurm"]["slurm-requeue"] is True
