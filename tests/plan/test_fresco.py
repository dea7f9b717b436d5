"""The plan of recipe fresco: which items come of a video, and in how many jobs its film is put together."""

import pytest

from stages.runtime.errors import UsageError


@pytest.fixture
def demo(config, jobs):
    """name -> job of a run of recipe fresco."""

    def of(clips, **options):
        config["models"]["sd"] = {"family": "fresco", "path": "weights/sd"}
        config["runs"]["demo"] = {"recipe": "fresco", "clips": clips, "model": "sd", "options": {"seed": 7, **options}}
        return jobs(**config)

    return of


def test_all_frames_and_keyframes_of_a_video_meet_in_propagate(demo):
    made = demo([{"video": "a.mp4", "prompt": "a kite"}], mininterv=2, maxinterv=9, size="256*256", parts=3)
    work = "results/demo/steps/a"
    every, keys = made["demo.extract_frames.000"].items
    assert (every.options["select"], every.options["size"], every.options["fit"]) == ("all", "256*256", "short")
    assert (keys.options["select"], keys.options["mininterv"], keys.options["maxinterv"]) == ("keyframes", 2, 9)
    assert made["demo.encode.000"].items[0].inputs == {"image": keys.output, "caption": f"{work}/caption.json"}
    translated = made["demo.decode.000"].outputs
    assert translated == ["results/demo/a/keys.json"]
    parts = [made[f"demo.propagate.part{part:02d}.000"] for part in range(3)]
    for number, part in enumerate(parts):
        (item,) = part.items
        assert item.inputs == {"frames": every.output, "keys": translated[0]}
        assert (item.options["part"], item.options["parts"], part.gpu) == (number, 3, 0)
    film = made["films/a"].items[0]
    assert film.inputs == {"clips": [part.outputs[0] for part in parts], "source": "a.mp4"}


def test_a_clip_has_one_prompt(demo):
    with pytest.raises(UsageError, match="clip a of run demo has 2 prompts: fresco takes one"):
        demo([{"video": "a.mp4", "prompts": ["a kite", "a ball"]}])


def test_a_schedule_that_leaves_nothing_is_refused(demo):
    with pytest.raises(UsageError, match="num_warmup_steps is 20 of 20 num_inference_steps: take fewer"):
        demo([{"video": "a.mp4", "prompt": "a kite"}], num_warmup_steps=20)
