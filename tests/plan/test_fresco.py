"""The plan of recipe fresco: the items of a video, and the number of jobs that propagate its keyframes."""

import pytest

from stages.runtime.errors import UsageError


@pytest.fixture
def demo(config, jobs):
    """A function that plans a run of recipe fresco and returns its jobs by name."""

    def plan_demo(clips, **options):
        config["models"]["sd"] = {"family": "fresco", "path": "weights/sd"}
        config["runs"]["demo"] = {"recipe": "fresco", "clips": clips, "model": "sd", "options": {"seed": 7, **options}}
        return jobs(**config)

    return plan_demo


def test_fresco_propagates_from_all_frames_and_keyframes_of_a_video(demo):
    jobs = demo([{"video": "a.mp4", "prompt": "a kite"}], mininterv=2, maxinterv=9, size="256*256", parts=3)
    work = "results/demo/steps/a"
    frames, keys = jobs["demo.extract_frames.000"].items
    assert (frames.options["select"], frames.options["size"], frames.options["fit"]) == ("all", "256*256", "short")
    assert (keys.options["select"], keys.options["min_interval"], keys.options["max_interval"]) == ("keyframes", 2, 9)
    assert jobs["demo.encode.000"].items[0].inputs == {"image": keys.output, "caption": f"{work}/caption.json"}
    translated = jobs["demo.decode.000"].outputs
    assert translated == ["results/demo/a/keys.json"]
    parts = [jobs[f"demo.propagate.part{part:02d}.000"] for part in range(3)]
    for number, part in enumerate(parts):
        (item,) = part.items
        assert item.inputs == {"frames": frames.output, "keys": translated[0]}
        assert (item.options["part"], item.options["parts"], part.gpu) == (number, 3, 0)
    film = jobs["demo.concat.000"].items[0]
    assert film.inputs == {"clips": [part.outputs[0] for part in parts], "source": "a.mp4"}


def test_a_fresco_clip_takes_one_prompt(demo):
    with pytest.raises(UsageError, match="clip a of run demo has 2 prompts: fresco takes one"):
        demo([{"video": "a.mp4", "prompts": ["a kite", "a ball"]}])


def test_a_fresco_schedule_without_steps_is_refused(demo):
    with pytest.raises(UsageError, match="num_warmup_steps is 20 of 20 num_inference_steps: set fewer"):
        demo([{"video": "a.mp4", "prompt": "a kite"}], num_warmup_steps=20)
