"""The report of `doctor` on this machine and on the models that a config declares."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from stages.doctor import main

CLIPS = [{"video": "a.mp4", "prompt": "a"}]
RUNS = {"a": {"recipe": "v2v", "model": "mine", "clips": CLIPS, "options": {"size": "832*480"}}}
GPU = "GPU-1, NVIDIA Example, {}, 4"


@pytest.fixture
def doctor(tiny_wan, tmp_path, monkeypatch):
    """A function that runs `doctor` on a config with two models. Its run uses the first. `memory` of the GPU is in MiB."""
    models = {
        "mine": {"family": "wan", "variant": "14b", "dtype": "bfloat16", "path": str(tiny_wan["14b"])},
        "other": {"family": "wan", "variant": "5b", "path": "nowhere"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": models, "runs": RUNS}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def run_doctor(*arguments, fails=0, memory=None):
        if memory is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {GPU.format(memory)}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == fails, result.output
        return result.output

    return run_doctor


def table_rows(output, title):
    """The rows of a table of the report, each as a list of words."""
    lines = output.split(f"{title}\n", 1)[1].splitlines()
    return [line.split() for line in lines[: next((i for i, line in enumerate(lines) if line[:1] != " "), len(lines))]]


def test_doctor_shows_versions_devices_and_free_disk(doctor, tmp_path):
    output = doctor(memory=16384)
    assert ["torch", version("torch")] in table_rows(output, "programs")
    assert table_rows(output, "devices")[0] == ["GPU-1", "NVIDIA", "Example", "17.2", "GB,", "4.2", "MB", "free"]
    free = shutil.disk_usage(tmp_path).free / 1e9
    free_shown = float(table_rows(output, "disk")[0][1])
    assert abs(free_shown - free) < 1


@pytest.fixture
def plannable(doctor, tmp_path):
    """A config with a valid run of three clips of 17 frames."""
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    options = {"size": "832*480", "frame_num": 17}
    clips = [{"id": name, "video": "a.mp4", "prompt": name} for name in "abc"]
    config["runs"] = {"a": {"recipe": "v2v", "model": "mine", "clips": clips, "options": options}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))


def test_doctor_shows_the_disk_space_of_a_run(doctor, plannable):
    row = next(row for row in table_rows(doctor(), "disk") if row[:2] == ["run", "a"])
    assert row[2:] == ["takes", "about", f"{2 * 3 * (17 * 832 * 480 + 2 * 512 * 4096 * 2) / 1e6:.1f}", "MB"]


def test_doctor_reports_too_little_disk_space_for_a_run(doctor, plannable, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10**6))
    assert doctor(fails=1).splitlines()[-1] == "error: not ready: room on the disk"


def test_doctor_knows_the_models_of_kinemake_in_a_config_that_declares_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = {"recipe": "text2video", "model": "shapes-text2video", "clips": [{"prompt": "a red ring"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"runs": {"first": run}}))
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0, result.output


def test_doctor_reports_each_broken_run(doctor, plannable, tmp_path):
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["runs"] |= {name: {**config["runs"]["a"], "clips": f"{name}.csv"} for name in ("b", "c")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    output = doctor(fails=1)
    for name in "bc":
        assert f"run {name}" in output and f"cannot be made: the file of clips {name}.csv does not exist" in output
    assert output.splitlines()[-1] == "error: not ready: b, c"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("text_encoder/generation_config.json", "generation_config.json is a link to nowhere, which does not exist"),
        ("tokenizer/special_tokens_map.json", "special_tokens_map.json is a link to nowhere, which does not exist"),
        ("model_index.json", "model_index.json is a link to nowhere, which does not exist"),
        ("vae/config.json", "vae/config.json is a link to nowhere"),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", "is a link to nowhere, which does not exist"),
        ("scheduler", "scheduler is a link to nowhere, which does not exist"),
        ("kinemake.json", "kinemake.json is a link to nowhere, which does not exist"),
    ],
)
def test_doctor_names_a_dangling_link_among_model_files(name, sentence, doctor, tiny_wan, tmp_path):
    copy = Path(shutil.copytree(tiny_wan["5b"], tmp_path / "copy"))
    if (copy / name).is_dir():
        shutil.rmtree(copy / name)
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to("nowhere")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": {"mine": {"family": "wan", "path": str(copy)}}}))
    assert sentence in doctor("mine", fails=1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"models: &all {a: *all}\n", "has a list or table that contains itself: remove the anchor"),
        (b"models: {caf\xe9: 1}\n", "is not UTF-8 text (byte 13): save it as UTF-8"),
    ],
)
def test_doctor_reports_a_damaged_config_in_one_sentence(text, sentence, tmp_path):
    config = tmp_path / "other.yaml"
    config.write_bytes(text)
    result = CliRunner().invoke(main, ["--config", str(config)])
    assert (result.exit_code, result.output) == (2, f"error: {config} {sentence}\n")


def test_doctor_names_a_config_that_is_a_dangling_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").symlink_to("nowhere.yaml")
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert result.output == "error: config.yaml is a link to nowhere.yaml, which does not exist: mend the path\n"


def test_doctor_shows_the_memory_of_weights_that_are_loaded_together(doctor, tiny_wan):
    def count(kind, part):
        model = kind.from_pretrained(tiny_wan["14b"], subfolder=part)
        return sum(p.numel() for p in model.state_dict().values())

    experts = [count(WanTransformer3DModel, part) for part in ("transformer", "transformer_2")]
    vae, text = count(AutoencoderKLWan, "vae"), count(UMT5EncoderModel, "text_encoder")
    megabytes = {row[1]: float(row[2]) for row in table_rows(doctor(), "weights in memory at once")}
    assert megabytes == {
        "encode": pytest.approx(max(2 * text, 4 * vae) / 1e6, abs=0.051),
        "generate": pytest.approx(2 * max(experts) / 1e6, abs=0.051),
        "decode": pytest.approx(4 * vae / 1e6, abs=0.051),
    }


def test_doctor_names_a_gpu_with_enough_memory_or_a_remedy(doctor):
    assert table_rows(doctor(memory=1000), "weights in memory at once")[0][-3:] == ["fits", "NVIDIA", "Example"]
    advice = {row[1]: " ".join(row[4:]) for row in table_rows(doctor(memory=0), "weights in memory at once")}
    assert advice["generate"] == "fits no GPU here: offload block_level"


def test_doctor_accepts_a_missing_model_unless_it_is_asked_for(doctor):
    sentence = "the weights of model other are not at nowhere: put them there or mend the path"
    assert sentence in doctor()
    output = doctor("other", fails=1)
    assert sentence in output and output.splitlines()[-1] == "error: not ready: other"


def test_doctor_reports_missing_weights_of_a_run(doctor, tiny_wan, tmp_path):
    copy = Path(shutil.copytree(tiny_wan["14b"], tmp_path / "copy"))
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["models"]["mine"]["path"] = str(copy)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "/vae lacks diffusion_pytorch_model.safetensors" in doctor(fails=1)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "model_index.json",
            '{"_class_name": ["evil", "Pipeline"]}',
            "model_index.json asks for code of its own",
        ),
        ("kinemake.json", '{"options": {"stepps": 1}}', "kinemake.json sets 'stepps', which is no option of family wan"),
        ("text_encoder/config.json", "[]", "text_encoder/config.json holds a list and not a table"),
        ("text_encoder/generation_config.json", "", "text_encoder/generation_config.json is not readable as JSON"),
        (
            "vae/config.json",
            '{"_class_name": "AutoencoderKLWan", "z_dim": 48, "latents_mean": [0.0]}',
            "vae/config.json says that latents_mean is [0.0], and z_dim, its length, is 48",
        ),
    ],
)
def test_doctor_checks_the_files_of_a_model_that_is_asked_for(name, content, sentence, doctor, tiny_wan, tmp_path):
    copy = Path(shutil.copytree(tiny_wan["5b"], tmp_path / "copy"))
    (copy / name).write_text(content)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": {"mine": {"family": "wan", "path": str(copy)}}}))
    assert sentence in doctor("mine", fails=1)


CAPTIONER = {
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template: fetch"),
    "a blank template": (lambda folder: (folder / "chat_template.jinja").write_text(" \n"), "has no chat template: fetch"),
    "a template that is no text": (
        lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"),
        "chat_template.jinja is not readable as text",
    ),
    "no tokens": (
        lambda folder: (folder / "tokenizer_config.json").write_text("{}"),
        "tokenizer_config.json does not name its start_image_token: captioners are InternVL (internvl), ",
    ),
    "no processor of pictures": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        "lacks preprocessor_config.json",
    ),
    "a torn config": (
        lambda folder: (folder / "video_preprocessor_config.json").write_text(""),
        "video_preprocessor_config.json is not readable as JSON",
    ),
}


@pytest.mark.parametrize("damage", CAPTIONER)
def test_doctor_checks_the_files_of_a_captioner(damage, doctor, tiny_vlm, tmp_path):
    change, sentence = CAPTIONER[damage]
    copy = Path(shutil.copytree(tiny_vlm, tmp_path / "copy"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": {"eye": {"family": "vlm", "path": str(copy)}}}))
    assert "whole, " in doctor("eye")
    change(copy)
    assert sentence in doctor("eye", fails=1)


def test_doctor_accepts_a_chat_template_in_the_tokenizer_config(doctor, tiny_vlm, tmp_path):
    copy = Path(shutil.copytree(tiny_vlm, tmp_path / "copy"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": {"eye": {"family": "vlm", "path": str(copy)}}}))
    template, path = (copy / "chat_template.jinja").read_text(), copy / "tokenizer_config.json"
    (copy / "chat_template.jinja").unlink()
    config = json.loads(path.read_text())
    for value in (template, [{"name": "default", "template": template}]):
        path.write_text(json.dumps({**config, "chat_template": value}))
        assert "whole, " in doctor("eye")


def test_doctor_reports_an_undeclared_model_in_one_sentence(doctor):
    assert doctor("none", fails=2) == "error: model none is not declared in the config: declared are mine, other\n"


def test_doctor_without_a_config_describes_the_machine(tmp_path):
    program = str(Path(sys.executable).with_name("doctor"))
    process = subprocess.run([program], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0 and "devices" in process.stdout, process.stderr


def test_doctor_names_a_home_in_which_snakemake_cannot_work(doctor, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "closed/cache"))
    assert "cannot work" not in doctor()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    words = f"cannot work ({tmp_path} may not be written by this user): set HOME or XDG_CACHE_HOME"
    assert ["snakemake", *words.split()] in [row[: 1 + len(words.split())] for row in table_rows(doctor(), "programs")]
