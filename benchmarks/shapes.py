"""Quality of the shipped models: the real pipeline on clips of shapes world that no training saw, scored by the oracle.

The limit is 1 for shares. PSNR is shown with its gain over a still image. An interrupted benchmark resumes: its data sets
and runs stay in benchmarks/out/.

    python -m benchmarks.shapes [--quick] [--json FILE]
"""

import json
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

from benchmarks.harness import ROOT, finish, parse_arguments, print_table, snakemake
from examples.shipped import declared_models
from stages import plan
from stages.media.shapes import dataset
from stages.media.shapes.dataset import Source
from stages.media.shapes.world import DIRECTIONS, render
from stages.media.write import write_png
from stages.score_shapes import score_run

CLIPS, QUICK_CLIPS = 200, 24
HELD_OUT, CHAINED = 0.3, 0.2  # of that number: clips of combinations never trained on, and clips that become chains
TRANSLATED = 0.1  # clips of either kind that are translated, which takes longest
MOVED = 0.25  # clips of either kind whose first frames are animated
SEED = 1000  # far from the seeds of the trainings
SIZE, FRAMES, FPS = 128, 17, 8
OPTIONS = {"lossless": True, "seed": 42}  # other options as the models are declared
LINKS = 4
FEW_STEPS = "shapes-wan-5b-4step"
GROUND = re.compile("gray|white")
WORDLESS = "continue video"  # a prompt that says nothing of a clip: only its source does

# targets of the models on combinations that they know: minima, for distances maxima. None: the figure is only shown
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
WORDLESS_FIGURES = dict.fromkeys(CONTINUATION) | {
    **{"color": 0.98, "shape": 0.90, "direction": 0.98, "speed": 0.95, "psnr_db": 28.0}
}
WITH_CAPTIONER = {"caption_exact": 0.95, "color": 0.95, "shape": None, "direction": 0.95, "psnr_db": None}
TURNING = {  # a source that moves in one direction, and a prompt with another direction
    "part01_direction": 0.90,
    "part02_direction": 0.90,
    "color_in_every_part": 0.95,
    "shape_in_every_part": None,
    "psnr_db": None,
    "gain_db": None,
    "median_end_point_px": None,
}
TARGETS = {
    "prompted-5b": CONTINUATION,
    "prompted-5b-4step": {**CONTINUATION, "psnr_db": 27.0},
    "prompted-5b-4step-without-lora": dict.fromkeys(CONTINUATION),
    "prompted-14b": CONTINUATION,
    "prompted-helios": dict.fromkeys(CONTINUATION),
    "wordless-helios": WORDLESS_FIGURES,
    "wordless-5b": dict.fromkeys(CONTINUATION),  # which sees one frame
    "v2v-5b": WITH_CAPTIONER,
    "v2v-14b": WITH_CAPTIONER,
    "chain-5b": {"color_in_every_link": 0.95, "shape_in_every_link": None, "direction_in_every_link": None, "seam_px": None},
    "text2video-5b": {"color": None, "shape": None, "direction": None, "speed": None, "color_shape_direction": 0.80},
    "text2video-5b-4step": {"color": 0.75, "shape": 0.75, "direction": 0.75, "speed": None, "color_shape_direction": None},
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
    """Write two data sets, once, with the first frame of each clip. Returns the clips by the path of their videos."""
    sources = {}
    for name, count, held_out in (("seen", clips, False), ("held-out", round(clips * HELD_OUT), True)):
        scenes = folder / name / dataset.SCENES
        if not scenes.is_file():
            shutil.rmtree(folder / name, ignore_errors=True)
            list(dataset.write(folder / name, dataset.draw(count, SIZE, FRAMES, SEED + held_out, held_out), FPS))
        sources |= {f"{name}/videos/{stem}.mp4": source for stem, source in dataset.read(scenes).items()}
    for video, source in sources.items():
        image = folder / image_path(video)
        image.parent.mkdir(exist_ok=True)
        write_png(image, render(source.scene, 1, SIZE, SIZE)[0])
    return sources


def config(clips: int, sources: dict[str, Source]) -> dict:
    """A config with the shipped models and the runs that they can make."""
    path_of = {path.replace("/videos/", "-").removesuffix(".mp4"): path for path in sources}
    videos = [{"id": name, "video": path} for name, path in path_of.items()]
    prompts = [{"id": name, "prompt": sources[path].caption} for name, path in path_of.items()]
    captioned = [{**video, **prompt} for video, prompt in zip(videos, prompts, strict=True)]
    wordless = [{**video, "prompt": WORDLESS} for video in videos]
    chained = [video for video in videos if video["id"].startswith("seen")][: round(clips * CHAINED)]
    on_black = [{**row, "prompt": GROUND.sub("black", row["prompt"])} for row in prompts]  # all that the U-Net knows
    as_links = {**OPTIONS, "links": LINKS}
    turns = [
        {**row, "prompt1": row["prompt"], "prompt2": change_direction(row["prompt"], i)} for i, row in enumerate(captioned)
    ]
    turns = [{name: text for name, text in row.items() if name != "prompt"} for row in turns]
    images = [{**row, "image": image_path(path_of[row["id"]])} for row in first_of(prompts, clips * MOVED)]
    to_translate = first_of(captioned, clips * TRANSLATED)
    captioner = {"captioner": "shapes-internvl", "options": OPTIONS}
    runs = {
        "prompted-5b": {"recipe": "v2v", "model": "shapes-wan-5b", "clips": captioned, "options": OPTIONS},
        "prompted-5b-4step": {"recipe": "v2v", "model": FEW_STEPS, "clips": captioned, "options": OPTIONS},
        "prompted-5b-4step-without-lora": {
            **{"recipe": "v2v", "model": FEW_STEPS, "clips": captioned},
            "options": {**OPTIONS, "lora": []},
        },
        "prompted-14b": {"recipe": "v2v", "model": "shapes-wan-14b", "clips": captioned, "options": OPTIONS},
        "prompted-helios": {"recipe": "v2v", "model": "shapes-helios", "clips": captioned, "options": OPTIONS},
        "wordless-helios": {"recipe": "v2v", "model": "shapes-helios", "clips": wordless, "options": OPTIONS},
        "wordless-5b": {"recipe": "v2v", "model": "shapes-wan-5b", "clips": wordless, "options": OPTIONS},
        "v2v-5b": {"recipe": "v2v", "model": "shapes-wan-5b", "clips": videos, **captioner},
        "v2v-14b": {"recipe": "v2v", "model": "shapes-wan-14b", "clips": videos, **captioner},
        "chain-5b": {"recipe": "chain", "model": "shapes-wan-5b", "clips": chained, **captioner, "options": as_links},
        "longlive": {"recipe": "longlive", "model": "shapes-longlive", "clips": turns, "options": OPTIONS},
        "longlive-recached": {
            **{"recipe": "longlive", "model": "shapes-longlive", "clips": turns},
            "options": {**OPTIONS, "recache_on_switch": True},
        },
        "text2video-5b": {"recipe": "text2video", "model": "shapes-wan-5b", "clips": prompts, "options": OPTIONS},
        "text2video-5b-4step": {"recipe": "text2video", "model": FEW_STEPS, "clips": prompts, "options": OPTIONS},
        "text2video-unet": {"recipe": "text2video", "model": "shapes-text2video", "clips": on_black, "options": OPTIONS},
        "dynamicrafter": {"recipe": "dynamicrafter", "model": "shapes-dynamicrafter", "clips": images, "options": OPTIONS},
        "fresco": {"recipe": "fresco", "model": "shapes-fresco", "clips": to_translate, "options": {"seed": 42}},
    }
    models = declared_models()
    return {"models": models, "runs": {name: run for name, run in runs.items() if run["model"] in models}}


def first_of(rows: list[dict], count: float) -> list[dict]:
    """The rows of the clips of either kind whose number is below `count`."""
    return [row for row in rows if int(row["id"].rpartition("-")[2]) < count]


def image_path(video: str) -> str:
    """Path of the first frame of a clip."""
    return video.replace("/videos/", "/pictures/").replace(".mp4", ".png")


def change_direction(prompt: str, number: int) -> str:
    """The prompt with another direction. Each other direction occurs equally often."""
    now = next(word for word in prompt.split() if word in DIRECTIONS)
    others = [direction for direction in DIRECTIONS if direction != now]
    return prompt.replace(f" {now} ", f" {others[number % len(others)]} ")


def make_clips(folder: Path, runs: dict) -> None:
    """Make the clips of all runs by snakemake. A clip that fails does not stop the others, and is scored as failed.

    Films are not made, because the frames are scored before they are encoded.
    """
    (folder / "config.yaml").write_text(json.dumps(runs))
    with chdir(folder):
        scored = ("decode", "propagate")
        jobs = [job.name for job in plan.load(runs, 2).jobs if any(part.stage.name in scored for part in job.parts)]
        subprocess.run(snakemake(2, "--keep-going", "--rerun-incomplete", *jobs), stdout=sys.stderr)


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    clips = QUICK_CLIPS if options.quick else CLIPS
    folder = ROOT / "benchmarks" / "out" / f"shapes-{clips}"
    runs_config = config(clips, make_sources(folder, clips))
    make_clips(folder, runs_config)
    results = {run: score_run(folder / "results" / run)["summary"] for run in runs_config["runs"]}
    rows, reached = [], []
    for run in results:
        targets = TARGETS[run]
        seen, held_out = results[run]["seen"], results[run].get("held_out", {})
        for name, target in {"clips": None, "failed": None, **targets}.items():
            value = seen.get(name, float("nan"))  # if no clip was made
            verdict = ""
            if target is not None:
                reached.append(value <= target if name.endswith("_px") else value >= target)
                verdict = "reached" if reached[-1] else "missed"
            rows.append([run, name, value, "" if target is None else target, verdict, held_out.get(name, "-")])
    print_table(["run", "figure", "seen", "target", "", "held out"], rows)
    line = f"shapes: {sum(reached)} of {len(reached)} targets reached on {clips} clips (goal: all)"
    finish(line, {"clips": clips, "runs": results}, options.json)


if __name__ == "__main__":
    main()
