"""Seconds and memory to plan many clips: `snakemake -n` over a JSONL file of 10,000.

python -m benchmarks.plan [--quick] [--json FILE]
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.harness import finish, median, parse_arguments, print_table, snakemake


def write_project(folder: Path, clips: int) -> None:
    """A config with one `v2v` run over `clips` clips with prompts, whose videos are not there."""
    rows = (json.dumps({"id": f"clip{n:05d}", "video": f"videos/{n:05d}.mp4", "prompt": f"clip {n}"}) for n in range(clips))
    (folder / "clips.jsonl").write_text("\n".join(rows))
    config = {
        "models": {"wan": {"family": "wan", "variant": "5b", "path": "weights/wan"}},
        "runs": {"many": {"recipe": "v2v", "clips": "clips.jsonl", "model": "wan", "options": {"seed": 1}}},
    }
    (folder / "config.yaml").write_text(json.dumps(config))


def plan_once(clips: int) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak MB of one dry run. Raises CalledProcessError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder), clips)
        command = snakemake(8, "--dry-run", "--resources", "gpu=8")
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the dry run failed with status {status}")
        return {
            "wall s": time.monotonic() - start,
            "cpu s": usage.ru_utime + usage.ru_stime,
            "peak MB": usage.ru_maxrss / 1024,
        }


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    counts = [100, 1000] if options.quick else [100, 1000, 10_000]
    results = {clips: [plan_once(clips) for _ in range(1 if options.quick else 3)] for clips in counts}
    keys = ["wall s", "cpu s", "peak MB"]
    print_table(["clips", *keys], [[clips, *(median(found, key) for key in keys)] for clips, found in results.items()])
    largest = results[counts[-1]]
    line = (
        f"plan: {median(largest, 'wall s'):.1f} s, {median(largest, 'peak MB'):.0f} MB for {counts[-1]} clips "
        "(goal <= 30 s, < 500 MB for 10000)"
    )
    finish(line, {"clips": {str(clips): found for clips, found in results.items()}}, options.json)


if __name__ == "__main__":
    main()
