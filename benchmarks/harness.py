"""Code that the benchmarks share: two options, fresh processes, alternating runs, a table, and the last line."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from stages.runtime.table import table

ROOT = Path(__file__).parents[1]
MEDIA = Path(os.environ.get("KINEMAKE_MEDIA", ROOT.parent / "shared/media"))  # real clips, which are not shipped


def parse_arguments(description: str, **flags: str) -> argparse.Namespace:
    """`quick` (bool) and `json` (a file name or None) from the command line, and further `flags`: help by name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a minute's worth of runs, for a first look")
    parser.add_argument("--json", metavar="FILE", help="keep the figures in FILE")
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args()


def in_fresh_process(module: str, function: str, *arguments) -> dict:
    """The result of `module.function(*arguments)` in a new interpreter. Arguments and result are passed as JSON."""
    code = (
        "import importlib, json, sys; module, function, arguments = json.loads(sys.argv[1]);"
        "print(json.dumps(getattr(importlib.import_module(module), function)(*arguments)))"
    )
    call = json.dumps([module, function, arguments])
    process = subprocess.run([sys.executable, "-c", code, call], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def command(name: str, *arguments) -> list[str]:
    """The command line of a program that is installed beside this interpreter."""
    return [str(Path(sys.executable).with_name(name)), *map(str, arguments)]


def snakemake(cores: int, *options, root: Path = ROOT) -> list[str]:
    """The command line that makes all runs of config.yaml in the working folder by the Snakefile of a checkout."""
    return command("snakemake", "--snakefile", root / "Snakefile", "--quiet", "all", "--cores", cores, *options)


def alternate(runs: dict, repeats: int) -> dict[str, list[dict]]:
    """Results of each named run. The runs alternate `repeats` times, so that other load affects all of them."""
    results = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            results[name].append(run())
    return results


def median(results: list[dict], key: str) -> float:
    return statistics.median(result[key] for result in results)


def print_table(head: list[str], rows: list[list]) -> None:
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    print(table([head, *cells], figures=True), end="")


def finish(line: str, figures: dict, path: str | None) -> None:
    """Write the figures to a file on request, and print the last line."""
    if path:
        with open(path, "w") as file:
            json.dump(figures | {"summary": line}, file, indent=1)
    print(line)
