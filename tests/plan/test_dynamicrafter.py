"""The plan of recipe dynamicrafter: images with and without prompts, the published defaults, the old program's names."""

from pathlib import Path

import pytest

from stages import plan
from stages.runtime.errors import UsageError

DEFAULTS = {  # variant: size, frame_stride, guidance_rescale
    "256": ("256*256", 3, 0.0),
    "512": ("512*320", 24, 0.7),
    "1024": ("1024*576", 10, 0.7),
    "512_interp": ("512*320", 5, 0.7),
}


@pytest.fixture
def demo(config, jobs):
    """A function that plans a run of recipe dynamicrafter and returns its jobs by name."""

    def plan_demo(clips, variant="256", options={}, **run):
        config["models"]["crafter"] = {"family": "dynamicrafter", "variant": variant, "path": "weights/crafter"}
        config["runs"]["demo"] = {
            **{"recipe": "dynamicrafter", "clips": clips, "model": "crafter", "captioner": "eye", "options": options},
            **{"scores": [], **run},
        }
        return jobs(**config)

    return plan_demo


@pytest.fixture
def images(config):
    """A folder of four images, three of which have a prompt file."""
    for name in ("b.PNG", "a.jpg", "d.tiff", "c.bmp", "notes.md"):
        Path("pictures", name).parent.mkdir(exist_ok=True)
        Path("pictures", name).touch()
    for stem in "abd":
        Path("pictures", f"{stem}.txt").write_text(f"the {stem}\n")
    return {"images": "pictures"}


def items_of(jobs, stage):
    return [item for name, job in jobs.items() if f".{stage}." in name for item in job.items]


@pytest.mark.parametrize("variant", DEFAULTS)
def test_dynamicrafter_variants_have_their_published_defaults(demo, variant):
    options = {"loop": True} if variant == "512_interp" else {}
    jobs = demo([{"image": "a.png", "prompt": "a bear"}], variant, options)
    assert list(jobs) == ["demo.encode.000", "demo.generate.000", "demo.decode.000", "demo.concat.000"]
    (encode,), (generate,), (decode,) = (items_of(jobs, stage) for stage in ("encode", "generate", "decode"))
    assert encode.inputs == {"image": "a.png"} and encode.options["prompt"] == "a bear"
    values = generate.options
    assert (encode.options["size"], values["frame_stride"], values["guidance_rescale"]) == DEFAULTS[variant]
    assert (values["num_inference_steps"], values["guidance_scale"], values["eta"], values["seed"]) == (50, 7.5, 1.0, 123)
    assert (encode.options["num_frames"], values["batch_size"], decode.options["fps"]) == (16, 1, 8.0)


@pytest.mark.parametrize(("variant", "seconds"), [("256", 10), ("512", 20), ("1024", 75)])
def test_a_dynamicrafter_job_requests_five_times_the_published_time_of_an_a100(demo, images, variant, seconds):
    (part,) = demo(images, variant)["demo.generate.000"].parts
    assert part.minutes / len(part.items) == pytest.approx(5 * seconds / 60, rel=0.2)


def test_dynamicrafter_pairs_a_folder_of_images_with_their_prompts(demo, images):
    jobs = demo(images)
    assert [(item.inputs.get("caption"), item.options["prompt"]) for item in items_of(jobs, "encode")] == [
        (None, "the a"),
        (None, "the b"),
        ("results/demo/steps/c/caption.json", ""),
        (None, "the d"),
    ]
    assert [item.inputs["video"] for item in items_of(jobs, "caption_vlm")] == ["pictures/c.bmp"]
    jobs = demo({**images, "missing_prompt": "skip"})
    assert [item.inputs["image"] for item in items_of(jobs, "encode")] == [
        "pictures/a.jpg",
        "pictures/b.PNG",
        "pictures/d.tiff",
    ]


def test_dynamicrafter_prompt_file_has_a_line_for_each_image(demo, images):
    Path("prompts.txt").write_text("one\ntwo\n\nfour\n")
    jobs = demo({**images, "prompts": "prompts.txt"})
    assert [item.options["prompt"] for item in items_of(jobs, "encode")] == ["one", "two", "", "four"]
    Path("prompts.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match=r"prompts.txt has 2 lines for 4 images"):
        demo({**images, "prompts": "prompts.txt"})


def test_dynamicrafter_without_a_captioner_needs_a_prompt_for_each_image(demo, config, images):
    demo(images)
    del config["runs"]["demo"]["captioner"]
    with pytest.raises(UsageError, match="clip c of run demo has no prompt and the run no captioner"):
        plan.load(config, 1)


def test_two_images_of_one_stem_become_films_of_their_own(demo, images):
    Path("pictures/a.png").touch()
    Path("pictures/a.txt").write_text("a bear")
    films = {f"results/demo/{name}.mp4" for name in ("a-jpg", "a-png", "b")}
    assert films <= set(demo(images)["demo.concat.000"].outputs)


def test_dynamicrafter_results_may_have_the_names_of_the_old_program(demo):
    name = "dynamicrafter_pipeline_{resolution}_seed{seed}/{image}.mp4"
    jobs = demo([{"id": "one", "image": "my pictures/a.b.png", "prompt": "a bear"}], "512", {"seed": 7}, name=name)
    (film,) = jobs["demo.concat.000"].outputs
    assert film == "results/demo/dynamicrafter_pipeline_512_seed7/a.b.mp4"


def test_only_the_interpolating_dynamicrafter_model_takes_an_end(demo):
    clip = {"image": "a.png", "prompt": "a bear"}
    jobs = demo([{**clip, "last_image": "b.png"}, {**clip, "id": "round", "loop": True}], "512_interp")
    assert [(i.options["last_image"], i.options["loop"]) for i in items_of(jobs, "encode")] == [("b.png", False), ("", True)]
    with pytest.raises(UsageError, match="neither last_image nor loop are set"):
        demo([clip], "512_interp")
    with pytest.raises(UsageError, match="both last_image and loop are set"):
        demo([{**clip, "last_image": "b.png", "loop": True}], "512_interp")
    with pytest.raises(UsageError, match="loop is set for a model of variant 512: use a model of variant 512_interp"):
        demo([{**clip, "loop": True}], "512")


def test_invalid_dynamicrafter_clips_are_refused_when_planned(demo):
    clip = {"image": "a.png", "prompt": "a bear"}
    with pytest.raises(UsageError, match=r"size 320\*320 is not one of this model's: choose 256\*256"):
        demo([{**clip, "size": "320*320"}])
    with pytest.raises(UsageError, match='variant is the number 256: write it in quotes: "256"'):
        demo([clip], 256)
    with pytest.raises(UsageError, match="clip x of run demo has no image"):
        demo([{"id": "x", "prompt": "a bear"}])
    with pytest.raises(UsageError, match="has 2 prompts: dynamicrafter takes one"):
        demo([{"image": "a.png", "prompts": ["a", "b"]}])


@pytest.mark.parametrize("recipe", ["v2v", "chain"])
def test_dynamicrafter_continues_a_video_from_its_full_last_frame(demo, recipe):
    jobs = demo([{"video": "a.mp4", "prompt": "a bear"}], recipe=recipe, fuse=False)
    (extract,), encode = items_of(jobs, "extract_frames"), items_of(jobs, "encode") or items_of(jobs, "encode.link01")
    assert (extract.options["select"], extract.options["size"]) == ("last", "")
    assert encode[0].inputs["image"] == extract.output and encode[0].options["size"] == "256*256"


def test_a_dynamicrafter_clip_of_one_frame_cannot_be_joined(demo):
    with pytest.raises(UsageError, match="has num_frames 1: a clip that is joined needs more than one frame"):
        demo([{"video": "a.mp4", "prompt": "a bear"}], options={"video_length": 1, "source_first": True}, recipe="v2v")
