"""Seconds and memory to plan many clips: `snakemake -n` over a JSONL file of 1,000 and 10,000.

They are compared with those of a bare Snakefile that lists the same rules, jobs and files, in the same run.

    python -m benchmarks.plan [--quick] [--json FILE]
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT, alternate, command, finish, median, parse_arguments, print_table
from stages import plan

WORKERS = 8
FLAGS = ["--dry-run", "--resources", f"gpu={WORKERS}"]
BARE = """
import json

jobs = json.load(open("jobs.json"))


rule all:
    input: [path for name, inputs, outputs in jobs if ".concat." in name for path in outputs]


for name, inputs, outputs in jobs:

    rule:
        name: name
        input: inputs
        output: outputs
        shell: "touch {output}"
"""


def write_project(folder: Path, clips: int) -> None:
    """Write a config with one `v2v` run over `clips` clips with prompts and missing videos, and a bare Snakefile of it."""
    rows = (json.dumps({"id": f"clip{n:05d}", "video": f"videos/{n:05d}.mp4", "prompt": f"clip {n}"}) for n in range(clips))
    (folder / "clips.jsonl").write_text("\n".join(rows))
    config = {
        "models": {"wan": {"family": "wan", "variant": "5b", "path": "weights/wan"}},
        "runs": {"many": {"recipe": "v2v", "clips": "clips.jsonl", "model": "wan", "options": {"seed": 1}}},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    before = os.getcwd()
    os.chdir(folder)
    jobs = plan.load(config, WORKERS).jobs
    os.chdir(before)
    made = {output for job in jobs for output in job.outputs}
    listed = [(job.name, [path for item in job.items for path in item.files if path in made], job.outputs) for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(listed))
    (folder / "bare").write_text(BARE)


def plan_once(folder: Path, snakefile: Path) -> dict[str, float]:
    """CPU seconds and peak MB of one dry run."""
    line = command("snakemake", "--snakefile", snakefile, "--quiet", "all", "--cores", WORKERS, *FLAGS)
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the dry run of {snakefile} failed with status {status}")
    return {"cpu s": usage.ru_utime + usage.ru_stime, "peak MB": usage.ru_maxrss / 1024}


def compare(clips: int, repeats: int) -> dict[str, list[dict]]:
    """Dry runs of ours and of a bare Snakefile over as many clips."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder, clips)
        snakefiles = {"ours": ROOT / "Snakefile", "bare": folder / "bare"}
        runs = {who: lambda path=path: plan_once(folder, path) for who, path in snakefiles.items()}
        return alternate(runs, repeats)


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    counts = [100, 1000] if options.quick else [1000, 10_000]
    results = {clips: compare(clips, 1 if options.quick else 3) for clips in counts}
    rows = [
        [clips, who, median(runs, "cpu s"), 1000 * median(runs, "cpu s") / clips, median(runs, "peak MB")]
        for clips, compared in results.items()
        for who, runs in compared.items()
    ]
    print_table(["clips", "Snakefile", "CPU s", "ms per clip", "peak MB"], rows)
    ours, bare = (results[counts[-1]][who] for who in ("ours", "bare"))
    line = (
        f"plan: {median(ours, 'cpu s') / median(bare, 'cpu s'):.2f} of a bare Snakefile (goal <= 1.2), "
        f"{median(ours, 'peak MB'):.0f} MB (goal < 500) for {counts[-1]} clips"
    )
    finish(line, {"clips": {str(clips): compared for clips, compared in results.items()}}, options.json)


if __name__ == "__main__":
    main()
