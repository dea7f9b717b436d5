"""Result of five minutes of `train` on a folder of videos and captions: the U-Net of text2video, from scratch.

A data set of shapes world, on black, is written to disk (mp4 and txt). One model is trained on it, and another for a single
step at learning rate 0, as the control. Both generate clips from captions, which the oracle scores. The goal: the validation
loss falls below half of its first value, and the trained model's colours and shapes beat the untrained one's by 0.3.

    python -m benchmarks.training [--quick] [--json FILE]
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks.harness import ROOT, command, finish, parse_arguments, print_table, snakemake
from stages.media.shapes import dataset
from stages.score_shapes import score_run

CLIPS, PROMPTS = 300, 24
SIZE, FRAMES, FPS = 32, 16, 8
STEPS, QUICK_STEPS = 1000, 100
SCORED = ("color", "shape", "direction")


def on_black(count: int, seed: int) -> list[dataset.Source]:
    """Scenes on a black background, which five minutes of training suffice for."""
    scenes = dataset.draw(9 * count, SIZE, FRAMES, seed)
    return [source for source in scenes if source.scene.background == "black"][:count]


def run(command_line: list[str], folder: Path) -> None:
    process = subprocess.run(command_line, cwd=folder, stdout=sys.stderr)
    if process.returncode:
        sys.exit(f"{Path(command_line[0]).name} ended with exit code {process.returncode}")


def write_config(path: Path, data: Path) -> None:
    """Write the config of the first training of the shapes-text2video U-Net, with a folder in place of shapes world."""
    config = yaml.safe_load((ROOT / "examples/training/shapes-text2video-first.yaml").read_text())
    config |= {"data": str(data), "schedule": "cosine", "augment": False, "validate_every": 100}
    path.write_text(yaml.safe_dump(config))


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    folder = ROOT / "benchmarks" / "out" / "training"
    shutil.rmtree(folder, ignore_errors=True)
    list(dataset.write(folder / "data", on_black(CLIPS, seed=1), FPS))
    write_config(folder / "train.yaml", folder / "data")
    steps = {"trained": ["--max-steps", QUICK_STEPS if options.quick else STEPS]}
    steps["untrained"] = ["--max-steps", 1, "--learning-rate", 0]
    for name, arguments in steps.items():
        files = ("--config", "train.yaml", "--output", name)
        run(command("train", "text2video", *files, "--device", "cpu", *arguments), folder)

    prompts = [source.caption for source in on_black(PROMPTS, seed=2)]
    settings = {"seed": 42, "steps": 20, "sampler": "ddim", "lossless": True}
    models = {name: {"family": "text2video", "path": f"{name}/model", "dtype": "float32"} for name in steps}
    clips = [{"id": f"clip{i:02d}", "prompt": prompt} for i, prompt in enumerate(prompts)]
    runs = {name: {"recipe": "text2video", "model": name, "clips": clips, "options": settings} for name in steps}
    (folder / "config.yaml").write_text(json.dumps({"models": models, "runs": runs}))
    run(snakemake(2), folder)

    scores = {name: score_run(folder / "results" / name)["summary"]["seen"] for name in steps}
    report = json.loads((folder / "trained/training.json").read_text())
    first, last = report["history"][0]["validation_loss"], report["validation_loss"]
    print_table(["model", *SCORED], [[name, *(scores[name][fact] for fact in SCORED)] for name in steps])
    gain = min(scores["trained"][fact] - scores["untrained"][fact] for fact in ("color", "shape"))
    line = (
        f"training: {report['seconds']:.0f} s, validation loss {last / first:.2f} of that at step "
        f"{report['history'][0]['step']} (goal <= 0.5), colour and shape {gain:+.2f} over an untrained model (goal >= 0.3)"
    )
    finish(line, {"scores": scores, "training": report}, options.json)


if __name__ == "__main__":
    main()
