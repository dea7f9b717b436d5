"""The command `score` on folders of runs whose artifacts the tests write."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stages import plan
from stages.media.shapes import dataset, filmed, world
from stages.media.write import VideoWriter, write_png
from stages.runtime.artifacts import Failure, member_path, write_failure, write_index
from stages.score import main

MODELS = {
    "wan": {"family": "wan", "variant": "5b", "path": "weights/wan", "sizes": ["64*64"]},
    "eye": {"family": "vlm", "path": "weights/eye"},
    "sd": {"family": "fresco", "path": "weights/sd"},
    "crafter": {"family": "dynamicrafter", "variant": "256", "path": "weights/crafter"},
}
MODEL = {"model": "wan", "family": "wan", "variant": "5b", "weights": "none"}
FRAMES = 5
OPTIONS = {"size": "64*64", "frame_num": FRAMES, "seed": 1}
START = 16


class PlannedRun:
    """A planned run. Its methods write artifacts as the stages would."""

    def __init__(self, name: str, entry: dict):
        planned = plan.load({"models": MODELS, "runs": {name: {"model": "wan", "options": OPTIONS, **entry}}}, 1)
        planned.write()
        self.folder = Path("results") / name
        self.outputs = {(item.id, part.stage.name): Path(item.output) for part in planned.parts for item in part.items}

    def write_caption(self, identity: str, text: str) -> None:
        fields = {**MODEL, "raw": text, "prompt": text or "given", "frames": [], "tokens": {"in": 0, "out": 0}}
        write_index(self._output_path(identity, "caption_vlm"), "caption", fields)

    def write_clip(self, identity: str, frames: np.ndarray, stage: str = "decode") -> None:
        path = self._output_path(identity, stage)
        count, height, width, _ = frames.shape
        with VideoWriter(member_path(path, ".mkv"), width, height, 8, codec="lossless") as video:
            for frame in frames:
                video.write(frame)
        size = {"width": width, "height": height, "num_frames": count, "fps": "8/1"}
        write_index(path, "clip", {**MODEL, **size, "prompt": "", "raw": "", "seed": 1, "statistics": {}}, [".mkv"])

    def write_propagated(self, identity: str, frames: np.ndarray) -> None:
        path = self._output_path(identity, "propagate")
        listed = [{"index": number, "time": number / 8, "suffix": f"/{number:06d}.png"} for number in range(len(frames))]
        for frame, rgb in zip(listed, frames, strict=True):
            member_path(path, frame["suffix"]).parent.mkdir(exist_ok=True)
            write_png(member_path(path, frame["suffix"]), rgb)
        _, height, width, _ = frames.shape
        fields = {"width": width, "height": height, "source": {"fps": "8"}, "keys": [0], "frames": listed}
        write_index(path, "propagated", fields, [frame["suffix"] for frame in listed])

    def fail(self, identity: str, stage: str) -> None:
        write_failure(self._output_path(identity, stage), Failure("generate", identity, "it was too large", "take less"))

    def _output_path(self, identity: str, stage: str) -> Path:
        path = self.outputs[identity, stage]
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def score(self) -> tuple[str, dict]:
        printed = run_score(self.folder).stdout
        return printed, json.loads((self.folder / "score.json").read_text())


def run_score(*arguments, fails: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.stderr or result.exception
    return result


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The clips of a data set in the working folder, without its videos: score does not read their pixels."""
    monkeypatch.chdir(tmp_path)
    drawn = dataset.draw(2, 128, START + 1, seed=3) + dataset.draw(1, 128, START + 1, seed=3, held_out=True)
    rows = [{"stem": f"{i:04d}", **vars(s.scene), "frames": s.frames, "size": s.size} for i, s in enumerate(drawn)]
    Path("data/videos").mkdir(parents=True)
    Path("data/scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return drawn


def videos(count):
    return [{"video": f"data/videos/{i:04d}.mp4"} for i in range(count)]


def test_score_of_a_v2v_run(sources):
    run = PlannedRun("v2v", {"recipe": "v2v", "captioner": "eye", "clips": videos(3)})
    for i in (0, 2):
        run.write_clip(f"{i:04d}", world.render(sources[i].scene, FRAMES, start=START))
        run.write_caption(f"{i:04d}", sources[i].caption if i == 0 else "a wrong one")
    run.write_caption("0001", sources[1].caption)
    run.fail("0001", "decode")
    printed, result = run.score()
    seen, held_out = result["summary"]["seen"], result["summary"]["held_out"]
    assert (seen["clips"], seen["failed"], held_out["clips"], held_out["failed"]) == (2, 1, 1, 0)
    assert (seen["color"], seen["direction"], seen["caption_exact"]) == (0.5, 0.5, 1.0)
    assert (held_out["color"], held_out["shape"], held_out["caption_exact"]) == (1.0, 1.0, 0.0)
    assert seen["psnr_db"] == 100 and seen["median_end_point_px"] == 0
    assert "failed: 0001: generate of 0001: it was too large: take less" in printed
    assert printed.splitlines()[1].split() == ["seen", "held", "out"]
    assert [clip["clip"] for clip in result["clips"]] == ["0000", "0001", "0002"]


def test_score_names_a_missing_clip_and_counts_it_as_wrong(sources):
    run = PlannedRun("v2v", {"recipe": "v2v", "captioner": "eye", "clips": videos(1)})
    printed, result = run.score()
    assert "failed: 0000:" in printed and "clip.json does not exist" in printed
    assert result["summary"]["seen"]["color"] == result["summary"]["seen"]["caption_exact"] == 0


def test_score_counts_no_given_prompt_as_a_caption(sources):
    run = PlannedRun("v2v", {"recipe": "v2v", "clips": [{**videos(1)[0], "prompt": sources[0].caption}]})
    run.write_caption("0000", "")
    run.write_clip("0000", world.render(sources[0].scene, FRAMES, start=START))
    _, result = run.score()
    assert "caption_exact" not in result["summary"]["seen"] and result["summary"]["seen"]["color"] == 1


def test_score_of_takes_counts_the_caption_that_they_share_once(sources):
    run = PlannedRun("v2v", {"recipe": "v2v", "captioner": "eye", "clips": [{**videos(1)[0], "takes": 2}]})
    run.write_caption("0000", sources[0].caption)
    run.write_clip("0000", world.render(sources[0].scene, FRAMES, start=START))
    run.write_clip("0000.take2", world.render(sources[0].scene, FRAMES, start=0))
    _, result = run.score()
    first, second = result["clips"]
    assert (first["caption_exact"], first["psnr_db"]) == (1, 100)
    assert "caption_exact" not in second and second["psnr_db"] < 100


def test_score_of_a_chain_with_takes_is_that_of_the_picked_ones(sources):
    run = PlannedRun("chain", {"recipe": "chain", "captioner": "eye", "clips": [{**videos(1)[0], "links": 2, "takes": 2}]})
    for link in (1, 2):
        frames = world.render(sources[0].scene, FRAMES, start=START + (link - 1) * (FRAMES - 1))
        run.write_caption(f"0000/link{link:02d}", sources[0].caption)
        run.write_clip(f"0000/link{link:02d}", frames, "pick")
        run.write_clip(f"0000/link{link:02d}.take1", 255 - frames)
    _, result = run.score()
    assert result["clips"][0]["color_in_every_link"] and result["clips"][0]["seam_px"] < 0.6


def test_a_chain_without_a_source_is_not_compared_with_one(sources):
    Path("shots.jsonl").write_text(json.dumps({"shot": "one", "from": "text", "prompt": sources[0].caption}) + "\n")
    run = PlannedRun("shots", {"recipe": "chain", "clips": {"shots": "shots.jsonl"}})
    assert "results/shots has no film: run snakemake first" in run_score(run.folder, fails=2).stderr  # as of any other run


def test_score_of_a_chain(sources):
    clips = [{**row, "links": 2, "link_name": "part{link}.mp4"} for row in videos(2)]
    run = PlannedRun("chain", {"recipe": "chain", "captioner": "eye", "clips": clips})
    for i in (0, 1):
        scene = sources[i].scene
        for link in (0, 1):
            start = START + link * (FRAMES - 1)
            if i == 1 and link == 1:
                run.fail("0001/link02", "caption_vlm")
                run.fail("0001/link02", "decode")
            else:
                run.write_caption(f"{i:04d}/link{link + 1:02d}", scene.caption())
                run.write_clip(f"{i:04d}/link{link + 1:02d}", world.render(scene, FRAMES, start=start))
    _, result = run.score()
    whole, broken = result["clips"]
    assert whole["color_in_every_link"] and whole["shape_in_every_link"] and whole["caption_exact"] == 1
    assert whole["seam_px"] < 0.6 and not whole["failed"]
    assert broken["link01_color"] and not broken["link02_color"] and not broken["color_in_every_link"]
    assert broken["caption_exact"] == 0.5 and "too large" in broken["failed"]


def test_score_of_a_text2video_run(sources):
    scene = world.Scene("red", "square", "right", "quickly", "black", 0.15, 0.1, 0.5)
    prompts = [scene.caption(), "a green triangle moving right quickly", "a red ring"]
    clips = [{"id": f"clip{i}", "prompt": prompt} for i, prompt in enumerate(prompts)]
    run = PlannedRun("text2video", {"recipe": "text2video", "clips": clips})
    run.write_clip("clip0", world.render(scene, 17))
    run.write_clip("clip1", world.render(scene, 17))
    printed, result = run.score()
    assert [clip["color_shape_direction"] for clip in result["clips"]] == [True, False, False]
    assert result["clips"][1]["direction"] and result["clips"][1]["held_out"]
    assert "failed: clip2" in printed


def test_score_of_a_dynamicrafter_run(sources):
    scene = world.Scene("red", "square", "right", "quickly", "black", 0.15, 0.1, 0.5)
    clips = [{"id": f"clip{i}", "image": "a.png", "prompt": scene.caption()} for i in range(2)]
    run = PlannedRun("moved", {"recipe": "dynamicrafter", "model": "crafter", "clips": clips, "options": {}})
    run.write_clip("clip0", world.render(scene, 16))
    run.write_clip("clip1", world.render(scene, 1).repeat(16, axis=0))
    _, result = run.score()
    assert [(clip["color"], clip["direction"]) for clip in result["clips"]] == [(True, True), (True, False)]


def test_score_of_a_fresco_run(sources):
    run = PlannedRun("look", {"recipe": "fresco", "model": "sd", "clips": videos(3), "captioner": "eye", "options": {}})
    scenes = [source.scene for source in sources]
    run.write_propagated("0000/part0", filmed.film(scenes[0], FRAMES, 128, 128, grain=1))
    run.write_propagated("0001/part0", world.render(scenes[1], FRAMES, 128, 128))  # not translated
    printed, result = run.score()
    reached, kept, missing = result["clips"]
    assert reached["look"] and reached["color"] and reached["shape"] and reached["direction"]
    assert reached["nearness_of_look"] == pytest.approx(1, abs=0.2) and reached["flicker_levels"] < 1
    assert not kept["look"] and kept["color"] and kept["nearness_of_look"] == pytest.approx(0, abs=0.2)
    assert not missing["look"] and not missing["color"] and "failed: 0002: " in printed


def test_score_takes_a_moved_run_and_scenes_from_elsewhere(sources):
    run = PlannedRun("v2v", {"recipe": "v2v", "captioner": "eye", "clips": videos(1)})
    run.write_clip("0000", world.render(sources[0].scene, FRAMES, start=START))
    run.write_caption("0000", sources[0].caption)
    Path("elsewhere").mkdir()
    run.folder.rename("elsewhere/moved")
    Path("data/scenes.jsonl").rename("scenes.jsonl")
    assert "failed" not in run_score("elsewhere/moved", "--scenes", "scenes.jsonl").stdout.splitlines()[-1]
    stderr = run_score("elsewhere/moved", "--scores", "shapes", fails=2).stderr
    assert stderr.startswith("error: the scenes ") and stderr.count("\n") == 1


@pytest.mark.parametrize("files", [{}, {"config.yaml": "", "clips.jsonl": ""}, {"config.yaml": "- a", "clips.jsonl": "{}"}])
def test_score_refuses_a_folder_that_is_no_run(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    stderr = run_score(tmp_path, fails=2).stderr
    assert str(tmp_path) in stderr and "run" in stderr and stderr.count("\n") == 1


def test_score_refuses_a_clip_of_another_aspect_than_its_source(sources):
    run = PlannedRun("v2v", {"recipe": "v2v", "captioner": "eye", "clips": videos(1)})
    run.write_clip("0000", np.zeros((FRAMES, 64, 96, 3), np.uint8))
    run.write_caption("0000", sources[0].caption)
    assert "is 96x64, its source is a square" in run_score(run.folder, fails=2).stderr


def write_film(folder: Path, name: str, speed: int) -> None:
    """A film of a square that moves."""
    with VideoWriter(folder / f"{name}.mp4", 64, 64, 8) as video:
        for number in range(8):
            frame = np.full((64, 64, 3), 90, np.uint8)
            frame[20:40, 4 + speed * number : 24 + speed * number] = (200, 60, 60)
            video.write(frame)
    size = {"width": 64, "height": 64, "num_frames": 8, "fps": "8/1"}
    write_index(folder / f"{name}.json", "film", {**size, "parts": [{"name": name, "frames": 8}]}, [".mp4"])


def test_score_of_films_of_shapes_world_has_both_kinds_of_figures(sources):
    run = PlannedRun("v2v", {"recipe": "v2v", "captioner": "eye", "clips": videos(2)})
    run.write_clip("0000", world.render(sources[0].scene, FRAMES, start=START))
    run.write_caption("0000", sources[0].caption)
    write_film(run.folder, "0000", speed=2)
    for number in range(2):
        with VideoWriter(f"data/videos/{number:04d}.mp4", 64, 64, 8) as video:
            video.write(np.zeros((64, 64, 3), np.uint8))
    printed, _ = run.score()
    assert "results/v2v: 1 of 2 films" in printed and "not scored: 0001: it has no film" in printed
    first, second = json.loads((run.folder / "scores.json").read_text())["clips"]
    assert first["shapes.color"] == 1 and first["motion.magnitude"] > 0 and first["failed"] == ""
    assert second["shapes.color"] == 0 and second["failed"] == "it has no film"


def test_compare_names_what_differs_and_the_clips_of_one_run_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = {}
    for name, steps, clips in (("a", 10, "xy"), ("b", 20, "xyz")):
        rows = [{"id": clip, "prompt": "a kite", "num_inference_steps": steps} for clip in clips]
        runs[name] = {"recipe": "text2video", "model": "wan", "options": OPTIONS, "clips": rows, "scores": ["motion"]}
    plan.load({"models": MODELS, "runs": runs}, 1).write()
    for name, speed, clips in (("a", 1, "xy"), ("b", 3, "xyz")):
        for clip in clips:
            write_film(Path("results", name), clip, speed)
    printed = run_score("--compare", "results/a", "results/b", "-o", "found.json").stdout
    assert printed.splitlines()[:2] == ["option               a   b", "num_inference_steps  10  20"]
    assert "only in b: z" in printed
    found = json.loads(Path("found.json").read_text())
    (magnitude,) = [one for one in found["comparisons"]["b"] if one["figure"] == "motion.magnitude"]
    assert magnitude["films"] == magnitude["wins"] == 2 and magnitude["second"] == pytest.approx(
        3 * magnitude["first"], rel=0.3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compare", "results/a"), "--compare is given with 1 runs"),
        (("--compare", "results/a", "a.mp4"), "a.mp4 is not the folder of a run"),
        (("--compare", "results/a", "results/a", "-o", "a.txt"), "output a.txt is of an unknown format"),
        (("results/a", "--reference", "a.mp4"), "reference is given beside a run"),
        (("results/a",), "results/a is not the folder of a run"),
        (("a.mp4", "--scenes", "a"), "--scenes is a and no run is given"),
    ],
)
def test_wrong_usage_of_score_is_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("results/a").mkdir(parents=True)
    Path("a.mp4").touch()
    stderr = run_score(*arguments, fails=2).stderr
    assert message in stderr and stderr.count("\n") == 1
