"""The plan of recipe dynamicrafter: pictures with and without prompts, the published defaults, the old names."""

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
    """name -> job of a run of recipe dynamicrafter."""

    def of(clips, variant="256", options={}, **run):
        config["models"]["crafter"] = {"family": "dynamicrafter", "variant": variant, "path": "weights/crafter"}
        config["runs"]["demo"] = {
            **{"recipe": "dynamicrafter", "clips": clips, "model": "crafter", "captioner": "eye", "options": options},
            **run,
        }
        return jobs(**config)

    return of


@pytest.fixture
def pictures(config):
    """A folder of pictures, three of four with a text."""
    for name in ("b.PNG", "a.jpg", "d.tiff", "c.bmp", "notes.md"):
        Path("pictures", name).parent.mkdir(exist_ok=True)
        Path("pictures", name).touch()
    for stem in "abd":
        Path("pictures", f"{stem}.txt").write_text(f"the {stem}\n")
    return {"images": "pictures"}


def of_stage(made, stage):
    return [item for name, job in made.items() if f".{stage}." in name for item in job.items]


@pytest.mark.parametrize("variant", DEFAULTS)
def test_each_variant_has_its_published_defaults(demo, variant):
    options = {"loop": True} if variant == "512_interp" else {}
    made = demo([{"image": "a.png", "prompt": "a bear"}], variant, options)
    assert list(made) == ["demo.encode.000", "demo.generate.000", "demo.decode.000", "films/a"]
    (encode,), (generate,), (decode,) = (of_stage(made, stage) for stage in ("encode", "generate", "decode"))
    assert encode.inputs == {"image": "a.png"} and encode.options["prompt"] == "a bear"
    told = generate.options
    assert (encode.options["size"], told["frame_stride"], told["guidance_rescale"]) == DEFAULTS[variant]
    assert (told["num_inference_steps"], told["guidance_scale"], told["eta"], told["seed"]) == (50, 7.5, 1.0, 123)
    assert (encode.options["video_length"], told["batch_size"], decode.options["fps"]) == (16, 1, 8.0)


def test_a_folder_of_pictures_with_their_texts(demo, pictures):
    made = demo(pictures)
    assert [(item.inputs.get("caption"), item.options["prompt"]) for item in of_stage(made, "encode")] == [
        (None, "the a"),
        (None, "the b"),
        ("results/demo/steps/c/caption.json", ""),
        (None, "the d"),
    ]
    assert [item.inputs["video"] for item in of_stage(made, "caption_vlm")] == ["pictures/c.bmp"]
    made = demo({**pictures, "missing_prompt": "skip"})
    assert [item.inputs["image"] for item in of_stage(made, "encode")] == [
        "pictures/a.jpg",
        "pictures/b.PNG",
        "pictures/d.tiff",
    ]


def test_a_file_of_prompts_has_a_line_for_each_picture(demo, pictures):
    Path("prompts.txt").write_text("one\ntwo\n\nfour\n")
    made = demo({**pictures, "prompts": "prompts.txt"})
    assert [item.options["prompt"] for item in of_stage(made, "encode")] == ["one", "two", "", "four"]
    Path("prompts.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match=r"prompts.txt has 2 lines for 4 pictures"):
        demo({**pictures, "prompts": "prompts.txt"})


def test_without_a_captioner_a_picture_needs_a_text(demo, config, pictures):
    demo(pictures)
    del config["runs"]["demo"]["captioner"]
    with pytest.raises(UsageError, match="clip c of run demo has no prompt and the run no captioner"):
        plan.load(config, 1)


def test_two_pictures_of_one_name_are_refused(demo, pictures):
    Path("pictures/a.png").touch()
    with pytest.raises(UsageError, match=r"pictures/a.png has the id a, as pictures/a.jpg has"):
        demo(pictures)


def test_the_results_have_the_old_names(demo):
    name = "dynamicrafter_pipeline_{resolution}_seed{seed}/{image}.mp4"
    made = demo([{"id": "one", "image": "my pictures/a.b.png", "prompt": "a bear"}], "512", {"seed": 7}, name=name)
    (film,) = [job.outputs[0] for name, job in made.items() if name.startswith("films/")]
    assert film == "results/demo/dynamicrafter_pipeline_512_seed7/a.b.mp4"


def test_the_interpolating_model_needs_an_end_and_the_others_have_none(demo):
    clip = {"image": "a.png", "prompt": "a bear"}
    made = demo([{**clip, "last_image": "b.png"}, {**clip, "id": "round", "loop": True}], "512_interp")
    assert [(i.options["last_image"], i.options["loop"]) for i in of_stage(made, "encode")] == [("b.png", False), ("", True)]
    with pytest.raises(UsageError, match="neither last_image nor loop are set"):
        demo([clip], "512_interp")
    with pytest.raises(UsageError, match="both last_image and loop are set"):
        demo([{**clip, "last_image": "b.png", "loop": True}], "512_interp")
    with pytest.raises(UsageError, match="loop is set for a model of variant 512: it takes one of variant 512_interp"):
        demo([{**clip, "loop": True}], "512")


def test_what_would_fail_late_is_said_at_once(demo):
    clip = {"image": "a.png", "prompt": "a bear"}
    with pytest.raises(UsageError, match=r"size 320\*320 is not one of this model's: choose 256\*256"):
        demo([{**clip, "size": "320*320"}])
    with pytest.raises(UsageError, match='variant is the number 256: write it in quotes: "256"'):
        demo([clip], 256)
    with pytest.raises(UsageError, match="clip x of run demo has no image"):
        demo([{"id": "x", "prompt": "a bear"}])
    with pytest.raises(UsageError, match="has 2 prompts: dynamicrafter takes one"):
        demo([{"image": "a.png", "prompts": ["a", "b"]}])
