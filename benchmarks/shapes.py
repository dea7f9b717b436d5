"""How good the shipped models are: the real pipeline on clips of shapes world that no training saw, scored by the oracle.

The limit is 1 for shares; PSNR is told with its gain over a picture that stands still. An interrupted benchmark goes on
where it was stopped: its data sets and runs stay in benchmarks/out/.

    python -m benchmarks.shapes [--quick] [--json FILE]
"""

import json
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import yaml

from benchmarks.harness import ROOT, finish, parse_arguments, print_table, snakemake
from stages import plan
from stages.media.shapes import dataset
from stages.media.shapes.dataset import Source
from stages.media.shapes.world import DIRECTIONS, render
from stages.media.write import write_png
from stages.score import score_run

CLIPS, QUICK_CLIPS = 200, 24
HELD_OUT, IN_CHAINS = 0.3, 0.2  # of that number: clips of combinations never trained on, and clips that become chains
TRANSLATED = 0.1  # and, of either kind, those that are translated, which takes longest,
MOVED = 0.25  # and those whose first frames come to move
SEED = 1000  # far from those of the trainings
SIZE, FRAMES, FPS = 128, 17, 8
OPTIONS = {"lossless": True, "seed": 42}  # all else as the models are declared
LINKS = 4
GROUND = re.compile("gray|white")

# What the models were to reach on combinations that they know: at least, for distances at most. None: only told.
CONTINUATION = {
    "color": 0.98,
    "shape": 0.90,
    "direction": 0.98,
    "speed": None,
    "psnr_db": 28.0,
    "gain_db": 6.0,
    "median_end_point_px": 1.5,
    "end_point_px": None,
    "seam_px": None,
}
WITH_CAPTIONER = {"caption_exact": 0.95, "color": 0.95, "shape": None, "direction": 0.95, "psnr_db": None}
TURNING = {  # a source that goes one way, and a prompt that says another
    "part01_direction": 0.90,
    "part02_direction": 0.90,
    "color_in_every_part": 0.95,
    "shape_in_every_part": None,
    "psnr_db": None,
    "gain_db": None,
    "median_end_point_px": None,
}
BARS = {
    "told-5b": CONTINUATION,
    "told-14b": CONTINUATION,
    "v2v-5b": WITH_CAPTIONER,
    "v2v-14b": WITH_CAPTIONER,
    "chain-5b": {"color_in_every_link": 0.95, "shape_in_every_link": None, "direction_in_every_link": None, "seam_px": None},
    "text2video-5b": {"color": None, "shape": None, "direction": None, "speed": None, "color_shape_direction": 0.80},
    "longlive": TURNING,
    "longlive-recached": TURNING,
    "text2video-unet": {"color": 0.95, "shape": 0.95, "direction": 0.6, "speed": None, "color_shape_direction": None},
    "dynamicrafter": {"color": 0.95, "shape": None, "direction": 0.85, "speed": None, "color_shape_direction": None},
    "fresco": {
        **{"look": 0.95, "color": 0.95, "shape": 0.90, "direction": 0.95},
        **{"nearness_of_look": None, "flicker_levels": None},
    },
}


def make_sources(folder: Path, clips: int) -> dict[str, Source]:
    """Two data sets, once, with the first frame of each clip; the clips by the path of the video."""
    sources = {}
    for name, count, held_out in (("seen", clips, False), ("held-out", round(clips * HELD_OUT), True)):
        scenes = folder / name / dataset.SCENES
        if not scenes.is_file():
            shutil.rmtree(folder / name, ignore_errors=True)
            list(dataset.write(folder / name, dataset.draw(count, SIZE, FRAMES, SEED + held_out, held_out), FPS))
        sources |= {f"{name}/videos/{stem}.mp4": source for stem, source in dataset.read(scenes).items()}
    for video, source in sources.items():
        picture = folder / picture_of(video)
        picture.parent.mkdir(exist_ok=True)
        write_png(picture, render(source.scene, 1, SIZE, SIZE)[0])
    return sources


def declared_models() -> dict:
    """The shipped models as the project declares them, with paths that hold anywhere."""
    declared = yaml.safe_load((ROOT / "config.yaml").read_text())["models"]
    return {name: {**model, "path": str(ROOT / model["path"])} for name, model in declared.items() if "path" in model}


def config(clips: int, sources: dict[str, Source]) -> dict:
    """The models, and the runs that the shipped ones can make."""
    named = {path.replace("/videos/", "-").removesuffix(".mp4"): path for path in sources}
    videos = [{"id": name, "video": path} for name, path in named.items()]
    prompts = [{"id": name, "prompt": sources[path].caption} for name, path in named.items()]
    told = [{**video, **prompt} for video, prompt in zip(videos, prompts, strict=True)]
    in_chains = [video for video in videos if video["id"].startswith("seen")][: round(clips * IN_CHAINS)]
    on_black = [{**row, "prompt": GROUND.sub("black", row["prompt"])} for row in prompts]  # all that the U-Net knows
    as_links = {**OPTIONS, "links": LINKS}
    turning = [{**row, "prompt1": row["prompt"], "prompt2": turned(row["prompt"], i)} for i, row in enumerate(told)]
    turning = [{name: text for name, text in row.items() if name != "prompt"} for row in turning]
    pictures = [{**row, "image": picture_of(named[row["id"]])} for row in first_of(prompts, clips * MOVED)]
    translated = first_of(told, clips * TRANSLATED)
    captioner = {"captioner": "shapes-internvl", "options": OPTIONS}
    runs = {
        "told-5b": {"recipe": "v2v", "model": "shapes-wan-5b", "clips": told, "options": OPTIONS},
        "told-14b": {"recipe": "v2v", "model": "shapes-wan-14b", "clips": told, "options": OPTIONS},
        "v2v-5b": {"recipe": "v2v", "model": "shapes-wan-5b", "clips": videos, **captioner},
        "v2v-14b": {"recipe": "v2v", "model": "shapes-wan-14b", "clips": videos, **captioner},
        "chain-5b": {"recipe": "chain", "model": "shapes-wan-5b", "clips": in_chains, **captioner, "options": as_links},
        "longlive": {"recipe": "longlive", "model": "shapes-longlive", "clips": turning, "options": OPTIONS},
        "longlive-recached": {
            **{"recipe": "longlive", "model": "shapes-longlive", "clips": turning},
            "options": {**OPTIONS, "recache_on_switch": True},
        },
        "text2video-5b": {"recipe": "text2video", "model": "shapes-wan-5b", "clips": prompts, "options": OPTIONS},
        "text2video-unet": {"recipe": "text2video", "model": "shapes-text2video", "clips": on_black, "options": OPTIONS},
        "dynamicrafter": {"recipe": "dynamicrafter", "model": "shapes-dynamicrafter", "clips": pictures, "options": OPTIONS},
        "fresco": {"recipe": "fresco", "model": "shapes-fresco", "clips": translated, "options": {"seed": 42}},
    }
    models = declared_models()
    return {"models": models, "runs": {name: run for name, run in runs.items() if run["model"] in models}}


def first_of(rows: list[dict], count: float) -> list[dict]:
    """Those rows of the clips of either kind whose number is below `count`."""
    return [row for row in rows if int(row["id"].rpartition("-")[2]) < count]


def picture_of(video: str) -> str:
    """Where the first frame of a clip is."""
    return video.replace("/videos/", "/pictures/").replace(".mp4", ".png")


def turned(prompt: str, number: int) -> str:
    """The prompt with another direction, each of the others equally often."""
    now = next(word for word in prompt.split() if word in DIRECTIONS)
    others = [direction for direction in DIRECTIONS if direction != now]
    return prompt.replace(f" {now} ", f" {others[number % len(others)]} ")


def make_clips(folder: Path, runs: dict) -> None:
    """The clips of all runs, by snakemake; one that fails does not stop the others, and is scored as failed.

    Films are not made, for what is scored are the frames before they are encoded.
    """
    (folder / "config.yaml").write_text(json.dumps(runs))
    with chdir(folder):
        jobs = [job.name for job in plan.load(runs, 2).jobs if job.stage.name in ("decode", "propagate")]
        subprocess.run(snakemake(2, "--keep-going", "--rerun-incomplete", *jobs), stdout=sys.stderr)


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    clips = QUICK_CLIPS if options.quick else CLIPS
    folder = ROOT / "benchmarks" / "out" / f"shapes-{clips}"
    planned = config(clips, make_sources(folder, clips))
    make_clips(folder, planned)
    results = {run: score_run(folder / "results" / run)["summary"] for run in planned["runs"]}
    rows, reached = [], []
    for run in results:
        bars = BARS[run]
        seen, held_out = results[run]["seen"], results[run].get("held_out", {})
        for name, bar in {"clips": None, "failed": None, **bars}.items():
            value = seen.get(name, float("nan"))  # where no clip at all was made
            verdict = ""
            if bar is not None:
                reached.append(value <= bar if name.endswith("_px") else value >= bar)
                verdict = "reached" if reached[-1] else "missed"
            rows.append([run, name, value, "" if bar is None else bar, verdict, held_out.get(name, "-")])
    print_table(["run", "figure", "seen", "bar", "", "held out"], rows)
    line = f"shapes: {sum(reached)} of {len(reached)} bars reached on {clips} clips (goal: all)"
    finish(line, {"clips": clips, "runs": results}, options.json)


if __name__ == "__main__":
    main()
