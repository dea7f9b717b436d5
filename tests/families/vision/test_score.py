"""Scores by networks equal plain computations with transformers on the same frames."""

import json

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoImageProcessor, AutoModel, AutoModelForDepthEstimation, AutoTokenizer

from stages import plan
from stages.media.read import frames
from stages.media.scores.sets import frechet, kernel
from stages.media.write import VideoWriter
from stages.runtime import artifacts
from stages.score import main
from tests.commands import stage
from tests.tiny.vision import POSITIONS, make

PROMPT = "a red square moving down quickly"


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    return {kind: make(folder / kind, kind) for kind in ("clip", "siglip", "dinov2", "depth")}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write(tmp_path_factory.mktemp("film") / "film.mp4", 7)


def write(path, count, seed=0):
    """A video whose frames are different random blocks."""
    rng = np.random.default_rng(seed)
    with VideoWriter(path, 96, 64, 8, codec="h264") as video:
        for _ in range(count):
            video.write(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1))
    return path


def score(film, model, output, *arguments, fails=0):
    message = stage("score", film, "-o", output, "-m", model, *arguments, "--device", "cpu", fails=fails)
    return message if fails else artifacts.read(output, ("scores",)).fields


def figure(fields, name):
    (value,) = [value for key, value in fields["figures"].items() if key.endswith(f".{name}")]
    return value


def pixels(film, model):
    images = [frame.rgb for frame in frames(film)]
    return AutoImageProcessor.from_pretrained(model, backend="pil")(images, return_tensors="pt")["pixel_values"]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float64)


def image_features(film, model):
    network = AutoModel.from_pretrained(model).eval()
    with torch.no_grad():
        inputs = {"pixel_values": pixels(film, model)}
        found = network.get_image_features(**inputs) if hasattr(network, "get_image_features") else network(**inputs)
    return unit(found.pooler_output.numpy())


def vbench_consistency(rows):
    """As VBench's subject_consistency.py computes it, frame by frame."""
    total = 0.0
    for number in range(1, len(rows)):
        to_before, to_first = (max(0.0, float(rows[number] @ rows[other])) for other in (number - 1, 0))
        total += (to_before + to_first) / 2
    return total / (len(rows) - 1)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_consistency_is_vbenchs_formula_on_the_librarys_features(kind, batch, networks, film, tmp_path):
    fields = score(film, networks[kind], tmp_path / "s.scores.json", "--frame-batch-size", batch)
    rows = image_features(film, networks[kind])
    assert figure(fields, "consistency") == pytest.approx(vbench_consistency(rows), abs=1e-5)
    assert fields["features"] == pytest.approx(rows.mean(0), abs=1e-5)
    assert 0.05 < vbench_consistency(rows) < 0.9999  # frames that differ


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT * 5])
def test_alignment_is_the_cosine_of_the_librarys_features(kind, prompt, networks, film, tmp_path):
    network, tokenizer = AutoModel.from_pretrained(networks[kind]).eval(), AutoTokenizer.from_pretrained(networks[kind])
    padding = "max_length" if kind == "siglip" else False
    tokens = tokenizer([prompt], padding=padding, truncation=True, max_length=POSITIONS, return_tensors="pt")
    with torch.no_grad():
        (text,) = unit(network.get_text_features(**tokens).pooler_output.numpy())
    expected = (image_features(film, networks[kind]) @ text).mean()
    fields = score(film, networks[kind], tmp_path / "s.scores.json", "--prompt", prompt)
    assert figure(fields, "alignment") == pytest.approx(expected, abs=1e-5)


def test_without_a_prompt_there_is_no_alignment(networks, film, tmp_path):
    fields = score(film, networks["clip"], tmp_path / "s.scores.json")
    assert [name.rpartition(".")[2] for name in fields["figures"]] == ["consistency"]


def test_structure_is_the_correlation_of_the_depth_of_film_and_source(networks, film, tmp_path):
    source = write(tmp_path / "source.mp4", 7, seed=1)
    network = AutoModelForDepthEstimation.from_pretrained(networks["depth"]).eval()
    with torch.no_grad():
        maps = [
            network(pixel_values=pixels(path, networks["depth"])).predicted_depth.flatten(1).numpy()
            for path in (film, source)
        ]
    expected = np.mean([np.corrcoef(ours, theirs)[0, 1] for ours, theirs in zip(*maps, strict=True)])
    fields = score(film, networks["depth"], tmp_path / "s.scores.json", "--source", source)
    assert figure(fields, "structure") == pytest.approx(expected, abs=1e-5)
    same = score(film, networks["depth"], tmp_path / "t.scores.json", "--source", film)
    assert figure(same, "structure") == pytest.approx(1.0, abs=1e-5)


def test_structure_needs_a_source_of_the_same_length(networks, film, tmp_path):
    assert "has no source" in score(film, networks["depth"], tmp_path / "s.scores.json", fails=1)
    other = write(tmp_path / "other.mp4", 5)
    message = score(film, networks["depth"], tmp_path / "s.scores.json", "--source", other, fails=1)
    assert "other.mp4 has not as many frames as" in message


def test_chosen_frames_are_the_midpoints_of_equal_parts(networks, film, tmp_path):
    fields = score(film, networks["dinov2"], tmp_path / "s.scores.json", "--sampled-frames", 2)
    rows = image_features(film, networks["dinov2"])[[1, 5]]
    assert figure(fields, "consistency") == pytest.approx(vbench_consistency(rows), abs=1e-5)
    one = score(film, networks["dinov2"], tmp_path / "t.scores.json", "--sampled-frames", 1)
    assert one["figures"] == {}  # one frame has no consistency


@pytest.fixture
def runs(networks, tmp_path, monkeypatch):
    """Two finished runs of three films each, which no network has looked at; ./config.yaml declares two."""
    monkeypatch.chdir(tmp_path)
    vision = {name: {"family": "vision", "path": str(networks[name])} for name in ("clip", "dinov2")}
    maker = {"family": "wan", "variant": "5b", "path": "weights/wan", "sizes": ["64*64"]}
    run = {"recipe": "text2video", "model": "maker", "scores": [], "options": {"size": "64*64", "seed": 1}}
    run["clips"] = [{"id": f"clip{n}", "prompt": PROMPT} for n in range(3)]
    planned = plan.load({"models": {"maker": maker}, "runs": {"a": run, "b": run}}, 1)
    planned.write()
    for number, film in enumerate(planned.films):
        write(tmp_path / film, 5, seed=number)
        size = {"width": 96, "height": 64, "num_frames": 5, "fps": "8/1"}
        parts = [{"name": "clip.mp4", "frames": 5, "prompt": PROMPT}]
        artifacts.write_index((tmp_path / film).with_suffix(".json"), "film", {**size, "parts": parts}, [".mp4"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": vision}))
    return [tmp_path / "results" / name for name in "ab"]


def test_networks_score_the_films_of_finished_runs_and_compare_them_as_sets(runs, networks):
    message = stage("score", runs[0], "--scores", "clip", "--scores", "dinov2", "--scores", "health")
    assert "Traceback" not in message
    listed = json.loads((runs[0] / "scores.json").read_text())["clips"]
    assert [row["clip"] for row in listed] == ["clip0", "clip1", "clip2"]
    for row in listed:
        rows = image_features(runs[0] / f"{row['clip']}.mp4", networks["dinov2"])
        assert row["dinov2.consistency"] == pytest.approx(vbench_consistency(rows), abs=1e-5)
        assert {"clip.alignment", "clip.consistency", "health.faulty_share"} <= row.keys() and not row["failed"]
    result = CliRunner().invoke(main, ["--distance", *map(str, runs), "--scores", "dinov2"])
    assert result.exit_code == 0, result.output
    one, two = (
        np.array([image_features(run / f"clip{n}.mp4", networks["dinov2"]).mean(0) for n in range(3)]) for run in runs
    )
    table = {line.split()[0]: float(line.split()[2]) for line in result.stdout.splitlines()[1:]}
    assert table["frechet"] == pytest.approx(frechet(one, two), rel=0.01)
    assert table["kernel"] == pytest.approx(kernel(one, two), rel=0.01, abs=1e-3)
    assert "3 clips are fewer than the 16 features" in result.stderr
