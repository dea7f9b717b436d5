"""Shot lists: films as lists of shots, which become the links of a chain."""

import math
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.runtime.errors import UsageError

SHOTS = [
    {"film": "beach", "shot": "waves", "prompt": "waves roll in", "from": "a.mp4", "seconds": 2},
    {"shot": "storm", "prompt": "a storm comes up", "frames": 9, "seed": 5, "takes": 2},
    {"shot": "gull", "from": "b.mp4"},
    {"film": "town", "shot": "street", "prompt": "an empty street", "from": "text"},
]


@pytest.fixture
def run(config):
    """A run of a shot list by the 5b, which makes 24 frames per second."""
    run = config["runs"]["demo"]
    run |= {"recipe": "chain", "clips": {"shots": "shots.yaml"}, "options": {"seed": 7}}
    write(SHOTS)
    return run


def write(shots, name="shots.yaml"):
    Path(name).write_text(yaml.safe_dump(shots))


def items(config):
    """All items of a plan, by output without the folder of the run."""
    jobs = plan.load(config, 1, whole=True).jobs
    return {item.output.removeprefix("results/demo/"): item for job in jobs for item in job.items}


def fault(config):
    with pytest.raises(UsageError) as caught:
        plan.load(config, 1)
    return str(caught.value)


def test_shots_are_links_with_values_of_their_own(config, run):
    found = items(config)
    assert sorted(name for name in found if name.endswith(".mp4")) == ["beach.mp4", "town.mp4"]
    encodes = [found[f"steps/beach/link0{n}/encoded.safetensors"] for n in (1, 2, 3)]
    assert [item.options["num_frames"] for item in encodes] == [49, 9, 81]  # 48 frames of 2 seconds are no 4n+1
    assert [item.inputs["image"] for item in encodes] == [
        "results/demo/steps/beach/frames.json",
        "results/demo/beach/video_01_beach.json",
        "results/demo/steps/beach/link03/frames.json",
    ]
    assert found["steps/beach/link03/frames.json"].inputs["video"] == "b.mp4"
    prompts = [found[f"steps/beach/link0{n}/caption.json"].options["prompt"] for n in (1, 2, 3)]
    assert prompts == ["waves roll in", "a storm comes up", ""]
    assert [found[f"steps/beach/link02/latents{take}.safetensors"].options["seed"] for take in ("", ".take2")] == [5, 105]
    film = found["beach.mp4"]
    assert film.options["cuts"] == ["3: b.mp4"] and film.options["names"][1:] == ["waves", "storm", "gull"]
    street = found["steps/town/link01/encoded.safetensors"]
    assert street.inputs == {} and street.options["prompt"] == "an empty street"


def test_the_video_in_front_of_a_film_of_shots_is_that_of_the_first(config, run):
    run["options"]["source_first"] = True
    assert "link 1 of clip town of run demo starts from text, which is no video: leave source_first out" in fault(config)
    write(SHOTS[:3])
    film = items(config)["beach.mp4"]
    assert film.inputs["source"] == "a.mp4" and film.options["names"][0] == "a.mp4"


def test_takes_of_shots_are_measured_without_a_source_of_the_film(config, run):
    run["options"] |= {"pick": "motion.smoothness", "takes": 2}
    run["scores"] = ["motion"]
    found = items(config)
    scores = {name: item for name, item in found.items() if name.endswith(".scores.json")}
    assert "steps/beach/link02/take2.scores.json" in scores and "beach.scores.json" in scores
    assert all("source" not in item.inputs for item in scores.values())
    assert all(path for item in found.values() for path in item.files)


def test_helios_goes_on_from_latents_after_a_shot_from_text(config, run):
    config["models"]["helios"] = {"family": "helios", "variant": "base", "path": "weights/helios"}
    run |= {"model": "helios", "options": {"seed": 7, "handover": "latents"}}
    write([SHOTS[3], {"shot": "rain", "prompt": "rain"}, {"shot": "sun", "prompt": "the sun"}])
    found = items(config)
    starts = [found[f"steps/town/link0{n}/encoded.safetensors"].inputs for n in (2, 3)]
    assert not any("image" in inputs for inputs in starts)
    assert [inputs["past"] for inputs in starts] == [f"results/demo/steps/town/link0{n}/latents.safetensors" for n in (1, 2)]


def test_a_further_shot_changes_only_what_goes_on_from_it(config, run):
    before = items(config)
    write([*SHOTS[:2], {"shot": "calm", "prompt": "the sea is calm"}, *SHOTS[2:]])
    after = items(config)
    assert (
        before["steps/beach/link03/latents.safetensors"].options == after["steps/beach/link04/latents.safetensors"].options
    )
    for name in ("steps/beach/link01/latents.safetensors", "steps/beach/link02/encoded.safetensors", "town.mp4"):
        assert before[name] == after[name]


def test_a_shot_list_may_be_jsonl_with_a_film_named_by_the_file(config, run):
    Path("night.jsonl").write_text('{"shot": "moon", "prompt": "the moon", "from": "text"}\n')
    run["clips"] = {"shots": "night.jsonl"}
    assert "night.mp4" in items(config)


@pytest.mark.parametrize(
    ("shot", "sentence"),
    [
        (
            {"shot": "a"},
            "shot 1 of shots.yaml is the first shot of shots and says no source: add from: a video, an image, or",
        ),
        ({"prompt": "a", "from": "text"}, "shot 1 of shots.yaml has no shot: give it a name"),
        ({"shot": "a", "from": "text"}, "link 1 of clip shots of run demo starts from text and has no prompt"),
        ({"shot": "a", "from": "a.mp4", "second": 2}, "has the key 'second': did you mean seconds? a shot has film, shot"),
        ({"shot": "a", "from": "a.mp4", "frames": 10}, "link 1 of clip shots of run demo has 10 frames: it must be 4n+1"),
        ({"shot": "a", "from": "a.mp4", "frames": 9, "seconds": 1}, "has both seconds and frames: leave one of them out"),
        (
            {"shot": "a", "from": "a.mp4", "takes": "two"},
            "takes of shot 1 of shots.yaml is 'two': it must be a whole number",
        ),
        ({"shot": "a", "from": "a.mp4", "takes": 0}, "takes of shot 1 of shots.yaml is 0: it must be a whole number from 1"),
        (
            {"shot": 1, "from": "a.mp4"},
            'shot of shot 1 of shots.yaml is 1: it must be text: write it in quotes, such as "1"',
        ),
        (
            {"shot": "a", "from": "a.mp4", "seconds": 0},
            "seconds of shot 1 of shots.yaml is 0: it must be a number from",
        ),
        (
            {"shot": "a", "from": "a.mp4", "seconds": 100000},
            "seconds of shot 1 of shots.yaml is 100000: it must be a number from 0.01 to 99999",
        ),
        ({"shot": "a", "from": "a.mp4", "seconds": math.nan}, "seconds of shot 1 of shots.yaml is nan: it must be a number"),
        ({"shot": "a", "from": "a.mp4", "takes": 101}, "takes of shot 1 of shots.yaml is 101: it must be a whole number"),
        ({"shot": "a", "from": "txt"}, "from of shot 1 of shots.yaml is 'txt': name a video or an image, previous or text"),
    ],
)
def test_wrong_shots_are_refused_with_a_sentence(config, run, shot, sentence):
    write([shot])
    assert sentence in fault(config)


def test_two_shots_of_one_name_and_a_list_that_is_none_are_refused(config, run):
    write([SHOTS[0], SHOTS[0]])
    assert "shot 2 of shots.yaml has the name 'waves', as shot 1 of shots.yaml has" in fault(config)
    write({"shot": "a"})
    assert "the shot list shots.yaml is no list of shots: begin each shot with a dash" in fault(config)
    run["clips"] = {"shots": "none.yaml"}
    assert "the shot list none.yaml does not exist" in fault(config)


def test_a_source_of_a_later_shot_that_is_missing_is_named_before_any_work(config, run):
    write([{**SHOTS[0], "from": "a.mp4"}, {"shot": "gone", "from": "gone.mp4"}])
    Path("a.mp4").touch()
    assert "1 of 1 clips of run demo will fail: no file gone.mp4" in plan.load(config, 1).warnings


def test_a_run_whose_shot_starts_from_a_film_of_another_run_waits_for_it(config, run):
    first = {**run, "clips": [{"id": "sea", "video": "a.mp4"}], "recipe": "v2v", "options": {"seed": 1}}
    config["runs"] = {"demo": run, "first": first}
    write([{**SHOTS[0], "from": "a.mp4"}, {"shot": "after", "from": "results/first/sea.mp4"}])
    jobs = [job for job in plan.load(config, 1).jobs if job.run.name == "demo"]
    assert {path for job in jobs for path in job.waits} == {"results/first/sea.mp4"}


@pytest.mark.parametrize("options", [{"links": 3}, {"link_prompts": ["1: a red ball"]}, {"num_videos": 2}])
def test_what_shots_say_is_no_option_of_their_run(config, run, options):
    run["options"] |= options
    assert f"run demo has a shot list and the option {[*options][0]}: say it in the shots" in fault(config)


def test_a_model_that_needs_a_frame_starts_no_shot_from_text(config, run):
    run["model"] = "big"
    assert "link 1 of clip town of run demo starts from text: model big needs a first frame" in fault(config)
