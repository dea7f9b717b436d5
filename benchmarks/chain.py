"""What a chain of 12 links costs besides its work: one fused job against a process per stage of each link."""

import json
import os
import resource
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.harness import finish, print_table, snakemake
from examples.shipped import declared_models
from stages.media.shapes import dataset

LINKS, QUICK_LINKS = 12, 3
GROWTH = 0.03  # of memory, from the second link to the last


def run_once(links: int, fuse: bool) -> dict:
    """A chain on the shipped 14B, in a fresh folder: CPU seconds of all processes, films, loads, memory after each link."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in dataset.write(folder / "data", dataset.draw(1, 128, 17, seed=0), 8):
            pass
        run = {"recipe": "chain", "fuse": fuse, "clips": {"videos": "data/videos"}, "model": "shapes-wan-14b"}
        run |= {"captioner": "shapes-internvl", "options": {"seed": 1, "links": links}}
        (folder / "config.yaml").write_text(json.dumps({"models": declared_models(), "runs": {"chain": run}}))
        before = cpu_seconds()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(snakemake(1), cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, **quiet)
        used = cpu_seconds() - before
        logs = sorted((folder / "results/chain/steps/logs").glob("*.log"))
        events = [json.loads(line) for log in logs for line in log.read_text().splitlines() if line.startswith('{"event"')]
        films = {str(film.relative_to(folder)): film.read_bytes() for film in folder.glob("results/chain/**/*.mp4")}
        shards = [event for event in events if event["event"] == "shard"]
        return {
            "per_link": used / links,
            "processes": 1 if fuse else len(shards),
            "loads": Counter(event["component"] for event in events if event["event"] == "load"),
            "memory": [event["memory_mb"] for event in shards if event["stage"] == "decode"],
            "films": films,
        }


def cpu_seconds() -> float:
    """CPU seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(quick: bool, path: str | None) -> None:
    """Run both ways, and print a table and the last line."""
    links = QUICK_LINKS if quick else LINKS
    plain, fused = (run_once(links, fuse) for fuse in (False, True))
    rows = [
        [name, one["per_link"], one["processes"], max(one["loads"].values())]
        for name, one in (("a process per stage", plain), ("fused", fused))
    ]
    print_table(["chain", "CPU s per link", "processes", "most loads of a part"], rows)
    _, second, *_, last = fused["memory"]
    growth = last / second - 1
    print(f"memory after link 2: {second} MB, after link {links}: {last} MB, {100 * growth:+.1f} % (goal within 3 %)")
    same = plain.pop("films") == fused.pop("films")
    line = f"overhead-chain: {fused['per_link'] / plain['per_link']:.3f} (goal <= 0.1)"
    line += "" if same else ", THE FILMS DIFFER"
    line += "" if set(fused["loads"].values()) == {1} else ", A PART IS LOADED MORE THAN ONCE"
    line += "" if abs(growth) <= GROWTH else ", MEMORY GROWS"
    finish(line, {"plain": plain, "fused": fused}, path)
