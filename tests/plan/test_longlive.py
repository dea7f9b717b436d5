"""The plan of recipe longlive: which items come of a video with two prompts, of prompts alone, of several samples."""

import json

import pytest

from stages.runtime.errors import UsageError

OPTIONS = {"seed": 7, "num_output_frames": 12}


@pytest.fixture
def demo(config, jobs):
    """name -> job of a run of recipe longlive."""

    def of(clips, options={}, **run):
        config["models"]["long"] = {"family": "longlive", "path": "weights/long"}
        config["runs"]["demo"] = {
            **{"recipe": "longlive", "clips": clips, "model": "long", "captioner": "eye"},
            **{"options": {**OPTIONS, **options}, **run},
        }
        return jobs(**config)

    return of


def test_a_video_and_its_prompt_come_before_what_prompt2_says(demo):
    made = demo([{"video": "a.mp4", "prompt1": "a beach", "prompt2": "a storm"}])
    work = "results/demo/steps/a"
    assert list(made) == [
        f"demo.{stage}.000" for stage in ("extract_frames", "caption_vlm", "encode", "generate", "decode")
    ] + ["films/a"]
    frames = made["demo.extract_frames.000"].items[0].options
    assert (frames["select"], frames["count"], frames["size"]) == ("first", 40, "832*480")
    assert made["demo.caption_vlm.000"].items[0].options["prompt"] == "a beach"
    encode = made["demo.encode.000"].items[0]
    assert encode.inputs == {"image": f"{work}/frames.json", "caption": f"{work}/caption.json"}
    assert (encode.options["prompt"], encode.options["next_prompts"]) == ("a storm", [])


def test_the_lines_of_the_old_program_are_clips(demo, config, tmp_path):
    rows = [{"video_path": "videos/beach.mp4", "prompt1": "waves", "prompt2": "larger waves"}]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = "rank{rank}-{idx}-{sample}_{model_type}.mp4"
    made = demo("clips.jsonl", {"num_samples": 2}, name=name)
    films = [job.outputs[0] for name, job in made.items() if name.startswith("films/")]
    assert films == ["results/demo/rank0-0-0_regular.mp4", "results/demo/rank0-0-1_regular.mp4"]
    assert [item.options["seed"] for item in made["demo.generate.000"].items] == [7, 8]


def test_films_of_several_samples_have_names_of_their_own(demo):
    made = demo([{"video": "a.mp4", "prompt2": "a storm", "num_samples": 2}])
    assert {"films/a_0", "films/a_1"} < set(made)


def test_prompts_alone_switch_on_the_way(demo):
    clip = {"id": "day", "prompts": ["dawn", "noon", "dusk"], "switch_frame_indices": [3, 6]}
    made = demo([clip])
    assert "demo.extract_frames.000" not in made and "demo.caption_vlm.000" not in made
    encode = made["demo.encode.000"].items[0]
    assert encode.inputs == {}
    assert (encode.options["prompt"], encode.options["next_prompts"]) == ("dawn", ["noon", "dusk"])


@pytest.mark.parametrize(
    ("clip", "options", "said"),
    [
        ({"video": "a.mp4"}, {}, "says nothing of what is to be made: give prompt2"),
        ({"id": "x", "prompt1": "a", "prompt2": "b"}, {}, "has a prompt1 and no video"),
        ({"id": "x", "prompts": ["a", "b"]}, {}, "has 2 prompts and 0 switch_frame_indices"),
        ({"video": "a.mp4", "prompt2": "b"}, {"num_output_frames": 100}, "a block has 3: take 99 or 102"),
        ({"video": "a.mp4", "prompt2": "b"}, {"num_output_frames": 1200}, "counts up to 1024: set relative_positions"),
        ({"video": "a.mp4", "prompt2": "b"}, {"size": "100*100"}, "size 100*100 is not one of this model's"),
        ({"video": "a.mp4", "prompt2": "b"}, {"sink_size": 10}, "local_attn_size is 12, with 10 sinks"),
    ],
)
def test_what_cannot_be_planned_is_told(demo, clip, options, said):
    with pytest.raises(UsageError) as error:
        demo([clip], options)
    assert said in str(error.value)
