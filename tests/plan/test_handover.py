"""How links of a chain go on: the items that a handover becomes, and what is refused before any work."""

from dataclasses import replace

import pytest

from stages import plan
from stages.runtime.errors import UsageError

HELIOS = {"family": "helios", "variant": "base", "path": "weights/helios"}


@pytest.fixture
def chain(config):
    """A run of a chain of three links by the 5b, whose links go on from latents."""
    config["models"]["helios"] = HELIOS
    run = config["runs"]["demo"]
    run |= {"recipe": "chain", "clips": [{"id": "a", "video": "a.mp4", "prompt": "a kite"}]}
    run["options"] = {"seed": 7, "links": 3, "handover": "latents", "known_latents": 3}
    return run


def encodes(config):
    """The items of encode, by link."""
    items = [item for job in plan.load(config, 1, whole=True).jobs for item in job.items]
    return {item.id.partition("/")[2]: item for item in items if item.output.endswith("encoded.safetensors")}


def fault(config):
    with pytest.raises(UsageError) as caught:
        plan.load(config, 1)
    return str(caught.value)


def test_the_5b_goes_on_from_its_own_latents_and_the_last_frames_of_the_source(config, chain):
    links = encodes(config)
    assert "past" not in links["link01"].inputs
    for before, label in (("link01", "link02"), ("link02", "link03")):
        assert links[label].inputs["past"] == f"results/demo/steps/a/{before}/latents.safetensors"
        assert links[label].inputs["image"] == f"results/demo/a/video_{before[-2:]}_a.json"
    (frames,) = (item for job in plan.load(config, 1).jobs for item in job.items if item.output.endswith("frames.json"))
    assert (frames.options["select"], frames.options["count"]) == ("tail", 9)


def test_by_frame_the_5b_reads_as_many_frames_as_latents_are_known(config, chain):
    chain["options"]["handover"] = "frame"
    links = encodes(config)
    assert all("past" not in item.inputs and item.options["known_latents"] == 3 for item in links.values())


def test_the_14b_goes_on_from_its_last_latent_and_one_image(config, chain):
    chain |= {"model": "big"}
    chain["options"] |= {"known_latents": 1, "lora": ["high.safetensors"], "lora_2": ["low.safetensors"]}
    links = encodes(config)
    assert {item.inputs["image"] for item in links.values()} == {"results/demo/steps/a/frames.json"}
    assert all(item.options["padding"] == "zeros" for item in links.values())
    assert links["link03"].inputs["past"] == "results/demo/steps/a/link02/latents.safetensors"


def test_helios_goes_on_from_its_latents_alone(config, chain):
    chain |= {"model": "helios"}
    del chain["options"]["known_latents"], chain["captioner"]
    links = encodes(config)
    assert links["link01"].inputs["image"] == "results/demo/steps/a/frames.json"
    assert links["link02"].inputs["past"] == "results/demo/steps/a/link01/latents.safetensors"
    assert "image" not in links["link02"].inputs


def test_of_several_takes_a_link_goes_on_from_the_latents_of_the_picked_one(config, chain):
    chain["options"] |= {"link_takes": ["2: 2"], "pick": ["motion.smoothness"]}
    links, steps = encodes(config), "results/demo/steps/a"
    assert links["link02"].inputs["past"] == f"{steps}/link01/latents.safetensors"
    assert links["link03"].inputs["past"] == f"{steps}/link02/picked.safetensors"
    clip, latents = (
        item
        for job in plan.load(config, 1).jobs
        for item in job.items
        if item.id.startswith("a/link02") and "clips" in item.inputs
    )
    assert clip.output == links["link03"].inputs["image"] and latents.output == links["link03"].inputs["past"]
    assert latents.inputs == {
        **clip.inputs,
        "latents": [f"{steps}/link02/latents{take}.safetensors" for take in ("", ".take2")],
    }
    assert latents.options == clip.options  # so that both are of the same take


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "big", "known_latents": 1}, "handover is latents and lora is empty: name the LoRAs of SVI 2 Pro"),
        ({"model": "big"}, "known_latents is 3 and the 14b knows one frame: leave known_latents out"),
        ({"known_latents": 1}, "handover is latents and known_latents is 1: set it to 2 or 3"),
        ({"num_frames": 9}, "known_latents is 3, which are 9 frames, and num_frames is 9: raise num_frames"),
        ({"handover": "motion"}, "handover is 'motion': it must be one of frame, latents"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(config, chain, changes, sentence):
    chain["model"] = changes.pop("model", "small")
    chain["options"] |= changes
    assert sentence in fault(config)


def test_a_model_that_goes_on_from_frames_alone_says_so(config, chain, monkeypatch):
    from stages.families.wan.options import FAMILY
    from stages.plan.families import ALL_FAMILIES
    from stages.runtime.options import FRAME, Handover

    alone = replace(FAMILY, handovers=lambda variant: {FRAME: Handover()})
    monkeypatch.setitem(ALL_FAMILIES, "wan", alone)
    assert "handover of clip a of run demo is latents: model small goes on from: frame" in fault(config)
