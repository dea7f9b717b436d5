"""The page of a run with 10,000 clips: seconds to write it, and in Chromium seconds to use it, memory, and films in step.

Films, descriptions and scores are copies of those of one real film; two of the films last 8 seconds and play in step.

    python -m benchmarks.page [--quick] [--json FILE]
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import psutil

from benchmarks.harness import ROOT, command, finish, parse_arguments, print_table, snakemake
from stages import plan
from stages.plan.description import describe
from tests import zoo
from tests.browser import Visit, chromium

PROMPT = "a red square moving right slowly on a black background"
RATE = 24  # frames per second of the films that play in step


def write_run(folder: Path, clips: int) -> Path:
    """A run with as many films, as if it had been made. Returns its folder."""
    (folder / "models").symlink_to(ROOT / "models")
    one = {"recipe": "text2video", "model": "shapes", "options": {"seed": 1}, "clips": [{"id": "one", "prompt": PROMPT}]}
    models = {"shapes": {"family": "wan", "path": "models/shapes-wan-5b"}}
    (folder / "config.yaml").write_text(json.dumps({"models": models, "runs": {"one": one}}))
    subprocess.run(snakemake(1), cwd=folder, check=True, capture_output=True)
    made = folder / "results/one"
    rows = [{"id": f"clip{n:05d}", "prompt": PROMPT, "seed": n} for n in range(clips)]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {"models": models, "runs": {"many": {**one, "clips": "clips.jsonl"}}}
    texts = {name: (made / name).read_text() for name in ("one.json", "one.scores.json")}
    digest = json.loads(texts["one.json"])["members"][".mp4"]["sha256"]
    with chdir(folder):
        (planned,) = plan.load(config, 1).runs
        run = Path(planned.run.folder)
        run.mkdir(parents=True)
        for path, text in describe(planned, models).items():
            Path(path).write_text(text)
        for number, row in enumerate(rows):
            os.link(made / "one.mp4", run / f"{row['id']}.mp4")
            for name, text in texts.items():  # a digest of its own, so that each film has a poster of its own
                (run / name.replace("one", row["id"])).write_text(text.replace(digest, f"{number:064x}"))
    run = folder / run
    for number in range(2):
        (run / f"clip{number:05d}.mp4").unlink()
        zoo.plain(run, f"clip{number:05d}.mp4", frames=8 * RATE, size=(640, 360), fps=RATE)
    return run


def renderer_mb(browser_processes: list[psutil.Process]) -> float:
    """Memory of the process that shows the page, in MB: what it shares with no other process."""
    renderers = [one for one in browser_processes if any("--type=renderer" in word for word in one.cmdline())]
    return max(one.memory_full_info().uss for one in renderers) / 1e6


def visit(run: Path) -> dict[str, float]:
    """Open the page, use it, and measure."""
    with chromium() as browser:
        seen = Visit(browser, run / "index.html")
        # until the first rows are in the document and every control works: the last script has run
        ready = seen.page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd") / 1000
        start = time.monotonic()
        seen.page.select_option("#sort", "seed")
        sorting = time.monotonic() - start
        for _ in range(10):
            seen.page.mouse.wheel(0, 5000)
            seen.page.wait_for_timeout(100)
        memory = renderer_mb(psutil.Process().children(recursive=True))
        loaded = {"videos": seen.page.locator("video").count(), "rows": seen.page.locator("#rows article").count()}
        requested = sum(url.endswith(".mp4") for url in seen.requested)
        seen.page.evaluate("viewer.open(page.films.slice(0, 2))")
        seen.wait("viewer.player.videos.every((video) => video.readyState === 4)")
        seen.page.click("#play")
        seen.wait("viewer.player.time >= 5", seconds=60)
        first, second = seen.page.evaluate("viewer.player.videos.map((video) => video.currentTime)")
        seen.close()
    step = {"step frames": abs(first - second) * RATE}
    return {"ready s": ready, "sort s": sorting, "memory MB": memory, "films requested": requested, **loaded, **step}


def measure(clips: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        run = write_run(Path(name), clips)
        seconds = []
        for _ in range(2):
            start = time.monotonic()
            subprocess.run(command("python", "-P", "-m", "stages.page", run), check=True, capture_output=True)
            seconds.append(time.monotonic() - start)
        size = (run / "page/data.js").stat().st_size / 1e6
        found = {"write s": seconds[0], "again s": seconds[1], "data MB": size, **visit(run)}
        shutil.rmtree(run)
    return found


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    counts = [100, 1000] if options.quick else [1000, 10_000]
    found = {clips: measure(clips) for clips in counts}
    names = list(found[counts[0]])
    print_table(["clips", *names], [[clips, *(row[name] for name in names)] for clips, row in found.items()])
    last = found[counts[-1]]
    line = (
        f"page: {last['ready s']:.2f} s until it works (goal < 2), {last['memory MB']:.0f} MB (goal < 300), "
        f"{last['films requested']} films loaded (goal 0), {last['step frames']:.2f} frames out of step (goal <= 1) "
        f"for {counts[-1]} clips"
    )
    finish(line, {"clips": {str(clips): row for clips, row in found.items()}}, options.json)


if __name__ == "__main__":
    main()
