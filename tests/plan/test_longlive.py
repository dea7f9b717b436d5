"""The plan of recipe longlive: the items of a video with two prompts, of prompts alone, and of several samples."""

import json

import pytest

from stages.runtime.errors import UsageError

OPTIONS = {"seed": 7, "num_output_frames": 12}


@pytest.fixture
def demo(config, jobs):
    """A function that plans a run of recipe longlive and returns its jobs by name."""

    def plan_demo(clips, options={}, **run):
        config["models"]["long"] = {"family": "longlive", "path": "weights/long"}
        config["runs"]["demo"] = {
            **{"recipe": "longlive", "clips": clips, "model": "long", "captioner": "eye"},
            **{"options": {**OPTIONS, **options}, "scores": [], **run},
        }
        return jobs(**config)

    return plan_demo


def test_longlive_encodes_prompt2_and_captions_the_source_with_prompt1(demo):
    jobs = demo([{"video": "a.mp4", "prompt1": "a beach", "prompt2": "a storm"}])
    work = "results/demo/steps/a"
    assert list(jobs) == [
        f"demo.{stage}.000" for stage in ("extract_frames", "caption_vlm", "encode", "generate", "decode", "concat")
    ]
    frames = jobs["demo.extract_frames.000"].items[0].options
    assert (frames["select"], frames["count"], frames["size"]) == ("first", 40, "832*480")
    assert jobs["demo.caption_vlm.000"].items[0].options["prompt"] == "a beach"
    encode = jobs["demo.encode.000"].items[0]
    assert encode.inputs == {"image": f"{work}/frames.json", "caption": f"{work}/caption.json"}
    assert (encode.options["prompt"], encode.options["next_prompts"]) == ("a storm", [])


def test_longlive_reads_the_jsonl_lines_of_the_old_program(demo, config, tmp_path):
    rows = [{"video_path": "videos/beach.mp4", "prompt1": "waves", "prompt2": "larger waves"}]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = "rank{rank}-{idx}-{sample}_{model_type}.mp4"
    jobs = demo("clips.jsonl", {"num_samples": 2}, name=name)
    assert jobs["demo.concat.000"].outputs == ["results/demo/rank0-0-0_regular.mp4", "results/demo/rank0-0-1_regular.mp4"]
    assert [item.options["seed"] for item in jobs["demo.generate.000"].items] == [7, 8]


@pytest.mark.parametrize(
    ("settings", "options", "model_type"),
    [
        ({}, {}, "regular"),
        ({"recipe": {"ema": True}}, {}, "ema"),
        ({"recipe": {"ema": True}}, {"lora": "lora.safetensors"}, "lora"),
    ],
)
def test_model_type_follows_the_settings_in_the_folder_of_the_model(settings, options, model_type, demo, tmp_path):
    """As `convert longlive` writes them: ema for the averaged weights, lora where a LoRA is loaded."""
    folder = tmp_path / "weights/long"
    folder.mkdir(parents=True)
    (folder / "kinemake.json").write_text(json.dumps({"family": "longlive", **settings}))
    (tmp_path / "lora.safetensors").touch()
    jobs = demo([{"video": "a.mp4", "prompt2": "a storm"}], options, name="{clip}_{model_type}.mp4")
    assert jobs["demo.concat.000"].outputs == [f"results/demo/a_{model_type}.mp4"]


def test_longlive_samples_have_film_names_of_their_own(demo):
    jobs = demo([{"video": "a.mp4", "prompt2": "a storm", "num_samples": 2}])
    assert jobs["demo.concat.000"].outputs == ["results/demo/a_0.mp4", "results/demo/a_1.mp4"]


def test_longlive_switches_between_prompts_without_a_source(demo):
    clip = {"id": "day", "prompts": ["dawn", "noon", "dusk"], "switch_frame_indices": [3, 6]}
    jobs = demo([clip])
    assert "demo.extract_frames.000" not in jobs and "demo.caption_vlm.000" not in jobs
    encode = jobs["demo.encode.000"].items[0]
    assert encode.inputs == {}
    assert (encode.options["prompt"], encode.options["next_prompts"]) == ("dawn", ["noon", "dusk"])


@pytest.mark.parametrize(
    ("clip", "options", "message"),
    [
        ({"video": "a.mp4"}, {}, "has no prompt for the film: give prompt2"),
        ({"id": "x", "prompt1": "a", "prompt2": "b"}, {}, "has a prompt1 and no video"),
        ({"id": "x", "prompts": ["a", "b"]}, {}, "has 2 prompts and 0 switch_frame_indices"),
        ({"video": "a.mp4", "prompt2": "b"}, {"num_output_frames": 100}, "a block has 3: take 99 or 102"),
        ({"video": "a.mp4", "prompt2": "b"}, {"num_output_frames": 1200}, "has positions for 1024: set relative_positions"),
        ({"video": "a.mp4", "prompt2": "b"}, {"size": "100*100"}, "size 100*100 is not one of this model's"),
        ({"video": "a.mp4", "prompt2": "b"}, {"sink_size": 10}, "local_attn_size is 12, with 10 sinks"),
    ],
)
def test_invalid_longlive_clips_are_refused_when_planned(demo, clip, options, message):
    with pytest.raises(UsageError) as error:
        demo([clip], options)
    assert message in str(error.value)


def test_helios_goes_on_from_the_end_of_the_source_and_its_film_begins_with_it(config, jobs):
    """No captioner is needed: the frames are all that it reads of the source."""
    config["models"]["end"] = {"family": "helios", "variant": "base", "path": "weights/end"}
    clip = {"video": "a.mp4", "prompts": ["a storm", "a calm"], "switch_frame_indices": [18]}
    config["runs"]["demo"] = {"recipe": "longlive", "clips": [clip], "model": "end", "options": {"seed": 7}, "scores": []}
    planned = jobs(**config)
    assert [name.split(".")[1] for name in planned] == ["extract_frames", "encode", "generate", "decode", "concat"]
    frames = planned["demo.extract_frames.000"].items[0].options
    assert (frames["select"], frames["count"], frames["size"]) == ("tail", 99, "640*384")
    encode = planned["demo.encode.000"].items[0]
    assert encode.inputs == {"image": "results/demo/steps/a/frames.json"}
    assert (encode.options["prompt"], encode.options["next_prompts"]) == ("a storm", ["a calm"])
    assert planned["demo.decode.000"].items[0].options["lossless"]
    assert planned["demo.concat.000"].items[0].inputs["source"] == "a.mp4"
