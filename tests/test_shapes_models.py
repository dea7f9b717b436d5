"""The shipped models reach in shapes world what docs/shapes.md says, and controls that must not work do not.

The clips are new. Each threshold lies below the figures of that page, and far above what a broken stage, a wrong prompt or
random weights reach: the controls show by how much.
"""

import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
import yaml

from examples.shipped import declared_models
from stages.media.read import frames, read_image
from stages.media.shapes import dataset, filmed, score
from stages.media.shapes.oracle import read
from stages.media.shapes.world import render
from stages.media.write import write_png
from stages.runtime import artifacts
from tests.commands import stage_manifest

ROOT = Path(__file__).parents[1]
COUNT, FRAMES, SIZE, SEED = 12, 17, 128, 77
TRANSLATED, MOVED = 2, 4  # clips for FRESCO, which takes longest, and for DynamiCrafter
MODEL = "shapes-wan-5b"
BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}
OTHER_COLOR = {"red": "green", "green": "blue", "blue": "yellow", "yellow": "purple", "purple": "orange", "orange": "red"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config with the shipped models as the project declares them, with paths that work in any folder."""
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump({"models": declared_models()}))
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Pairs of a video and its clip of shapes world."""
    folder = tmp_path_factory.mktemp("shapes") / "data"
    clips = dataset.draw(COUNT, SIZE, FRAMES, SEED)
    stems = list(dataset.write(folder, clips, 8))
    return list(zip([folder / "videos" / f"{stem}.mp4" for stem in stems], clips))


@pytest.fixture(scope="module")
def first_frames(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    rows = [
        {"video": str(video), "size": "64*64", "output": str(folder / f"{i}.json")} for i, (video, _) in enumerate(sources)
    ]
    return run_rows("extract_frames", folder, rows)


@pytest.fixture(scope="module")
def captions(sources, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    rows = [{"video": str(video), "output": str(folder / f"{i}.json")} for i, (video, _) in enumerate(sources)]
    return run_rows("caption_vlm", folder, rows, model="shapes-internvl", config=config)


def run_rows(name, folder, rows, model="", config=None):
    """Run a stage over the rows of a manifest and return its outputs."""
    rows = [{**row, **({"model": model} if model else {})} for row in rows]
    stage_manifest(name, folder, rows, *(("--config", config) if config else ()))
    return [Path(row["output"]) for row in rows]


def generate_clips(folder, inputs, model, config, generate={}):
    """Run encode, generate and decode on rows of inputs. Returns the clips, uint8 [T, H, W, 3]."""
    folder.mkdir()
    encoded = [{**row, "output": str(folder / f"{i}.e.safetensors")} for i, row in enumerate(inputs)]
    encoded = run_rows("encode", folder, encoded, model, config)
    rows = [
        {"encoded": str(path), "output": str(folder / f"{i}.l.safetensors"), "seed": i, **generate}
        for i, path in enumerate(encoded)
    ]
    latents = run_rows("generate", folder, rows, model, config)
    rows = [{"latents": str(path), "output": str(folder / f"{i}.json"), "lossless": True} for i, path in enumerate(latents)]
    clips = run_rows("decode", folder, rows, model, config)
    return [np.stack([frame.rgb for frame in frames(clip.with_suffix(".mkv"))]) for clip in clips]


def replace_words(prompt, words):
    """A prompt with some words replaced."""
    return " ".join(words.get(word, word) for word in prompt.split())


def mean_measures(clips, sources):
    """The mean of each measure over continuations."""
    measures = [score.continuation(clip, source.scene, FRAMES - 1) for clip, (_, source) in zip(clips, sources, strict=True)]
    return {name: fmean(float(clip_measures[name]) for clip_measures in measures) for name in measures[0]}


def measure_continuations(folder, first_frames, prompts, sources, config, model):
    inputs = [{"image": str(frame), "prompt": prompt} for frame, prompt in zip(first_frames, prompts, strict=True)]
    return mean_measures(generate_clips(folder, inputs, model, config), sources)


def test_shapes_internvl_captions_say_what_a_clip_shows(captions, sources):
    texts = [artifacts.read(path, ("caption",)).fields["raw"] for path in captions]
    measures = [score.caption(text, source.caption) for text, (_, source) in zip(texts, sources, strict=True)]
    for slot in ("color", "shape", "direction", "speed"):
        assert fmean(measure[f"caption_{slot}"] for measure in measures) >= 0.8, (slot, texts)


@pytest.mark.parametrize("model", [MODEL, "shapes-wan-5b-4step", "shapes-wan-14b"])
def test_shapes_wan_continues_a_first_frame_as_the_caption_says(model, captions, first_frames, sources, config, tmp_path):
    prompts = [artifacts.read(path, ("caption",)).fields["prompt"] for path in captions]
    measures = measure_continuations(tmp_path / "made", first_frames, prompts, sources, config, model)
    assert measures["color"] >= 0.9 and measures["shape"] >= 0.7 and measures["direction"] >= 0.9, measures
    assert measures["gain_db"] >= 6 and measures["end_point_px"] <= 2.5 and measures["seam_px"] <= 1.5, measures


def test_shapes_wan_goes_on_from_the_last_frames_and_from_its_own_latents(sources, config, tmp_path):
    """Two links: from nine frames of the source, then from latents of the first. The new frames are those of the scene."""
    model, known = "shapes-wan-5b-tail", 9
    rows = [
        {"video": str(video), "select": "tail", "count": known, "size": "64*64", "output": str(tmp_path / f"{i}.json")}
        for i, (video, _) in enumerate(sources)
    ]
    pasts = run_rows("extract_frames", tmp_path, rows)
    prompts = [source.caption for _, source in sources]
    inputs = [{"image": str(past), "prompt": prompt} for past, prompt in zip(pasts, prompts)]
    first = generate_clips(tmp_path / "first", inputs, model, config)
    inputs = [
        {"image": str(tmp_path / f"first/{i}.json"), "past": str(tmp_path / f"first/{i}.l.safetensors"), "prompt": prompt}
        for i, prompt in enumerate(prompts)
    ]
    second = generate_clips(tmp_path / "second", inputs, model, config)
    start = FRAMES - 1
    for clips in (first, second):
        new = [clip[known - 1 :] for clip in clips]
        found = [score.continuation(clip, source.scene, start) for clip, (_, source) in zip(new, sources)]
        for name in ("color", "direction", "speed"):
            assert fmean(one[name] for one in found) >= 0.9, name
        assert fmean(one["gain_db"] for one in found) >= 6
        start += FRAMES - known


def test_shapes_helios_continues_the_last_frames_as_the_caption_says(sources, config, tmp_path):
    rows = [
        {"video": str(video), "select": "tail", "count": FRAMES, "size": "64*64", "output": str(tmp_path / f"{i}.json")}
        for i, (video, _) in enumerate(sources)
    ]
    pasts = run_rows("extract_frames", tmp_path, rows)
    inputs = [{"image": str(past), "prompt": source.caption} for past, (_, source) in zip(pasts, sources, strict=True)]
    clips = generate_clips(tmp_path / "made", inputs, "shapes-helios", config)
    scored = [score.continuation(clip, source.scene, FRAMES) for clip, (_, source) in zip(clips, sources, strict=True)]
    means = {name: fmean(float(one[name]) for one in scored) for name in scored[0]}
    assert means["color"] >= 0.9 and means["shape"] >= 0.75 and means["direction"] >= 0.9 and means["gain_db"] >= 6, means


def test_shapes_helios_goes_on_as_its_source_moved_and_one_frame_does_not_say_how(sources, config, tmp_path):
    """The prompt says nothing of the clip. Of the last frame alone, direction and speed are guesses."""
    wordless = "continue video"
    rows = [
        {
            "video": str(video),
            "select": select,
            "count": FRAMES,
            "size": "64*64",
            "output": str(tmp_path / f"{select}{i}.json"),
        }
        for select in ("tail", "last")
        for i, (video, _) in enumerate(sources)
    ]
    pasts = run_rows("extract_frames", tmp_path, rows)
    figures = []
    for name, some in (("frames", pasts[:COUNT]), ("frame", pasts[COUNT:])):
        inputs = [{"image": str(past), "prompt": wordless} for past in some]
        clips = generate_clips(tmp_path / name, inputs, "shapes-helios", config)
        scored = [score.continuation(clip, source.scene, FRAMES) for clip, (_, source) in zip(clips, sources, strict=True)]
        figures.append({key: fmean(float(one[key]) for one in scored) for key in scored[0]})
    seen, guessed = figures
    assert min(seen["direction"], seen["speed"], seen["color"]) >= 0.9 and seen["shape"] >= 0.7, seen
    assert guessed["direction"] <= 0.5, guessed


def test_shapes_wan_with_an_empty_prompt_follows_no_direction(first_frames, sources, config, tmp_path):
    measures = measure_continuations(tmp_path / "made", first_frames, ["."] * COUNT, sources, config, MODEL)
    assert measures["direction"] <= 0.25 and measures["gain_db"] <= 1, measures


def test_shapes_wan_follows_the_opposite_direction_of_a_changed_prompt(first_frames, sources, config, tmp_path):
    """With the opposite direction in the prompt, hardly a clip moves in the old direction, and most move in the new one."""
    prompts = [replace_words(source.caption, BACK) for _, source in sources]
    inputs = [{"image": str(frame), "prompt": prompt} for frame, prompt in zip(first_frames, prompts, strict=True)]
    clips = generate_clips(tmp_path / "made", inputs, MODEL, config)
    assert mean_measures(clips, sources)["direction"] <= 0.1
    assert fmean(score.prompt_match(clip, prompt)["direction"] for clip, prompt in zip(clips, prompts, strict=True)) >= 0.8


def test_shapes_wan_with_random_weights_scores_low(first_frames, sources, config, tmp_path):
    from diffusers import WanTransformer3DModel

    model = tmp_path / "random"
    shutil.copytree(ROOT / "models" / MODEL, model)
    torch.manual_seed(0)
    architecture = WanTransformer3DModel.load_config(model / "transformer")
    WanTransformer3DModel.from_config(architecture).save_pretrained(model / "transformer")
    declared = yaml.safe_load(config.read_text())
    declared["models"]["random"] = {**declared["models"][MODEL], "path": str(model)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(declared))
    prompts = [source.caption for _, source in sources]
    measures = measure_continuations(tmp_path / "made", first_frames, prompts, sources, tmp_path / "config.yaml", "random")
    assert measures["color"] <= 0.4 and measures["direction"] <= 0.5 and measures["gain_db"] <= 0, measures


def test_a_still_frame_scores_no_direction(sources):
    still = [np.repeat(render(source.scene, 1, 64, 64, FRAMES - 1), FRAMES, axis=0) for _, source in sources]
    measures = mean_measures(still, sources)
    assert measures["direction"] == 0 and measures["gain_db"] == pytest.approx(0) and measures["end_point_px"] >= 12


def match_share(clips, prompts, slot):
    """The share of clips in which a slot is what the prompt names."""
    return fmean(score.prompt_match(clip, prompt)[slot] for clip, prompt in zip(clips, prompts, strict=True))


@pytest.mark.parametrize(
    "model, bounds",
    [
        (MODEL, {"color": 0.9, "shape": 0.6, "direction": 0.6}),
        ("shapes-text2video", {"color": 0.8, "shape": 0.6, "direction": 0.5}),
    ],
)
def test_shapes_text_to_video_shows_what_the_prompt_says(model, bounds, sources, config, tmp_path):
    prompts = [source.caption for _, source in sources]
    if model == "shapes-text2video":  # it knows no other background
        prompts = [replace_words(prompt, {"gray": "black", "white": "black"}) for prompt in prompts]
    clips = generate_clips(tmp_path / "made", [{"prompt": prompt} for prompt in prompts], model, config)
    for slot, bound in bounds.items():
        assert match_share(clips, prompts, slot) >= bound, slot
    assert match_share(clips, [replace_words(prompt, OTHER_COLOR) for prompt in prompts], "color") <= 0.2
    assert match_share(clips, [replace_words(prompt, BACK) for prompt in prompts], "direction") <= 0.2


def test_shapes_longlive_turns_only_as_the_second_prompt_says(sources, config, tmp_path):
    rows = [
        {"video": str(video), "select": "first", "count": FRAMES, "size": "64*64", "output": str(tmp_path / f"{i}.json")}
        for i, (video, _) in enumerate(sources)
    ]
    source_frames = run_rows("extract_frames", tmp_path, rows)
    turns = {"left": "up", "up": "right", "right": "down", "down": "left"}
    prompts = {"on": [source.caption for _, source in sources]}
    prompts["turned"] = [replace_words(prompt, turns) for prompt in prompts["on"]]
    films = {}
    for name, seconds in prompts.items():
        inputs = [
            {"image": str(frames), "prompt1": first, "prompt": second}
            for frames, first, second in zip(source_frames, prompts["on"], seconds, strict=True)
        ]
        clips = generate_clips(tmp_path / name, inputs, "shapes-longlive", config)
        films[name] = [clip[8:] for clip in clips]  # the first 9 frames are those of the source
    for name, seconds in prompts.items():
        assert match_share(films[name], seconds, "direction") >= 0.9, name
        assert match_share(films[name], seconds, "color") >= 0.9, name
    assert match_share(films["on"], prompts["turned"], "direction") <= 0.1
    assert match_share(films["turned"], prompts["on"], "direction") <= 0.1


def test_shapes_dynamicrafter_moves_an_image_as_the_prompt_says(sources, config, tmp_path):
    inputs = []
    for i, (_, source) in enumerate(sources[:MOVED]):
        write_png(tmp_path / f"{i}.png", render(source.scene, 1, SIZE, SIZE)[0])
        prompt = source.caption if i % 2 else replace_words(source.caption, BACK)
        inputs.append({"image": str(tmp_path / f"{i}.png"), "prompt": prompt})
    prompts = [row["prompt"] for row in inputs]
    clips = generate_clips(tmp_path / "made", inputs, "shapes-dynamicrafter", config)
    for slot, bound in {"color": 0.5, "shape": 0.7, "direction": 0.8}.items():
        assert match_share(clips, prompts, slot) >= bound, slot
    assert match_share(clips, [replace_words(prompt, BACK) for prompt in prompts], "direction") <= 0.2


@pytest.fixture(scope="module")
def keyframes(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keyframes")
    size = {"size": "128*128", "fit": "short", "multiple": 64, "canny": True}
    rows = [
        {"video": str(video), "select": "keyframes", **size, "output": str(folder / f"{i}.json")}
        for i, (video, _) in enumerate(sources[:TRANSLATED])
    ]
    return run_rows("extract_frames", folder, rows)


def translate(folder, keyframes, prompts, config):
    """Yield the translated keyframes of each clip, uint8 [K, H, W, 3], and their frame numbers."""
    folder.mkdir()
    rows = [
        {"image": str(keys), "prompt": prompt, "prompt_suffix": "", "output": str(folder / f"{i}.e.safetensors")}
        for i, (keys, prompt) in enumerate(zip(keyframes, prompts, strict=True))
    ]
    encoded = run_rows("encode", folder, rows, "shapes-fresco", config)
    rows = [
        {"encoded": str(path), "output": str(folder / f"{i}.l.safetensors"), "seed": i} for i, path in enumerate(encoded)
    ]
    latents = run_rows("generate", folder, rows, "shapes-fresco", config)
    rows = [{"latents": str(path), "output": str(folder / f"{i}.json")} for i, path in enumerate(latents)]
    for path in run_rows("decode", folder, rows, "shapes-fresco", config):
        keys = artifacts.read(path, ("clip",))
        listed = keys.fields["frames"]
        images = np.stack([read_image(keys.member(frame["suffix"])) for frame in listed])
        yield images, [frame["index"] for frame in listed]


def test_shapes_fresco_translates_keyframes_as_the_prompt_says(keyframes, sources, config, tmp_path):
    scenes = [source.scene for _, source in sources[:TRANSLATED]]
    nearness = {}
    for look in filmed.LOOKS:
        prompts = [f"{scene.caption()}, {look}" for scene in scenes]
        results = list(translate(tmp_path / look, keyframes, prompts, config))
        readings = [read(images) for images, _ in results]
        nearness[look] = [
            filmed.nearness(image[None], scene, number)
            for (images, numbers), scene in zip(results, scenes, strict=True)
            for image, number in zip(images, numbers, strict=True)
        ]
        for name in ("color", "shape"):
            assert fmean(getattr(a, name) == getattr(b, name) for a, b in zip(readings, scenes, strict=True)) >= 0.6, name
    assert fmean(nearness["filmed"]) > 0.7 and fmean(nearness["drawn"]) < 0.3, nearness
