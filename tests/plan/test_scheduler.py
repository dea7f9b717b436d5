"""Snakemake's scheduler wakes itself once per second, and no more often, however many jobs have ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from stages.plan.scheduler import METHOD, limit_timers

ROOT = Path(__file__).parents[2]
JOBS = 24
SNAKEFILE = f"""
import sys, threading, time

sys.path.insert(0, {str(ROOT)!r})
from stages.plan import limit_timers

timers, started = [], time.monotonic()


class Counted(threading.Timer):
    def start(self):
        timers.append(self)
        super().start()


threading.Timer = Counted


rule all:
    input: expand("{{n}}.txt", n=range({JOBS}))


rule one:
    output: "{{n}}.txt"
    shell: "sleep 0.05; : > {{output}}"


onstart:
    assert not config["mended"] or limit_timers(workflow.scheduler)


onsuccess:
    print("timers", len(timers), "in", time.monotonic() - started)
"""


def run(folder, mended):
    """Number of timers that a workflow of many short jobs starts, and how many of a second fit into its time."""
    (folder / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all", "--config", f"mended={mended}"]
    process = subprocess.run([*command, "--scheduler", "greedy"], cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    words = process.stdout.split()
    return int(words[words.index("timers") + 1]), float(words[words.index("in") + 1])


def test_snakemake_starts_a_timer_per_pass(tmp_path):
    """The fault that `limit_timers` mends. When a new version has it no longer, remove stages/plan/scheduler.py."""
    timers, _ = run(tmp_path, mended=False)
    assert timers >= JOBS


def test_one_timer_at_a_time_is_enough(tmp_path):
    timers, seconds = run(tmp_path, mended=True)
    assert timers <= seconds + 1
    assert len(list(tmp_path.glob("*.txt"))) == JOBS


@pytest.mark.parametrize("methods", [{}, {METHOD: lambda self, delay: None}])
def test_a_scheduler_of_other_code_is_left_alone(methods):
    scheduler = type("Other", (), methods)()
    assert not limit_timers(scheduler) and not vars(scheduler)
