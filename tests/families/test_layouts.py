"""A model whose path has its authors' layout: the error has the command that converts it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages import plan
from stages.families import FAMILIES
from stages.runtime import weights
from stages.runtime.errors import JobError, UsageError
from stages.runtime.model import Model, complete_model
from tests.commands import stage
from tests.hub import serve
from tests.tiny import published

WAN = ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.2_VAE.pth", "config.json", "google/umt5-xxl/tokenizer.json")
EXPERTS = ("Wan2.1_VAE.pth", "low_noise_model/config.json", "high_noise_model/config.json")
SD = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
WAN_REST = "--wan hub://Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
BASE = "hub://Efficient-Large-Model/LongLive-1.3B/models/longlive_base.pt"
CLIP = "--clip hub://laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CANNOT = "is not in a layout that Kinemake loads"
HED = "--controlnet-hed hub://lllyasviel/sd-controlnet-hed --hed hub://lllyasviel/Annotators/ControlNetHED.pth"


def place(folder: Path, names) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("family", "names", "inside", "remedy"),
    [
        ("wan", WAN, "", "run convert wan --ckpt-dir {at} --output {at}-converted, and use"),
        ("wan", EXPERTS, "", "run convert wan --ckpt-dir {at} --output {at}-converted"),
        ("wan", WAN, "Wan2.2_VAE.pth", "run convert wan --ckpt-dir {at} --output {at}-converted"),
        (
            "longlive",
            ("models/longlive_base.pt", "models/lora.pt", "README.md"),
            "",
            "run convert longlive --base {at}/models/longlive_base.pt --lora {at}/models/lora.pt " + WAN_REST,
        ),
        (
            "longlive",
            ("longlive_base.pt", "lora.pt"),
            "longlive_base.pt",
            "run convert longlive --base {at}/longlive_base.pt --lora {at}/lora.pt " + WAN_REST,
        ),
        ("longlive", ("lora.pt",), "lora.pt", "run convert longlive --base " + BASE + " --lora {at}/lora.pt " + WAN_REST),
        (
            "dynamicrafter",
            ("model.ckpt",),
            "",
            "run convert dynamicrafter --ckpt {at}/model.ckpt --resolution 256 " + CLIP + " --output {at}-converted",
        ),
        (
            "dynamicrafter",
            ("dynamicrafter_1024_v1/model.ckpt",),
            "dynamicrafter_1024_v1/model.ckpt",
            "--ckpt {at}/dynamicrafter_1024_v1/model.ckpt --resolution 1024 ",
        ),
        ("dynamicrafter", ("dynamicrafter_512_interp_fp16_pruned.safetensors",), "", " --resolution 512_interp "),
        ("fresco", SD, "", "run convert fresco --base {at} " + HED + " --output {at}-converted"),
        (
            "fresco",
            ("mine.safetensors",),
            "mine.safetensors",
            "--base hub://stable-diffusion-v1-5/stable-diffusion-v1-5 --checkpoint {at}/mine.safetensors " + HED,
        ),
        ("text2video", ("best_model.pth",), "best_model.pth", "train anew with train text2video --data FOLDER"),
        ("vlm", ("config.json", "modeling_internvl_chat.py"), "", "use the repository whose name ends in -HF"),
    ],
)
def test_plan_and_stages_answer_a_published_layout_with_the_command_that_converts_it(
    family, names, inside, remedy, tmp_path
):
    at = place(tmp_path / "weights", names)
    path = at / inside
    with pytest.raises(JobError) as error:
        complete_model(Model("mine", family, path=str(path)), FAMILIES)
    assert str(error.value).startswith(f"{path} {CANNOT}: ") and remedy.format(at=at) in str(error.value)
    runs = {
        "wan": {"recipe": "v2v", "captioner": "eye", "clips": [{"video": "a.mp4"}]},
        "longlive": {"recipe": "longlive", "clips": [{"prompt": "a"}]},
        "dynamicrafter": {"recipe": "dynamicrafter", "clips": [{"image": "a.png", "prompt": "a"}]},
        "fresco": {"recipe": "fresco", "clips": [{"video": "a.mp4", "prompt": "a"}]},
        "text2video": {"recipe": "text2video", "clips": [{"prompt": "a"}]},
        "vlm": {"recipe": "v2v", "model": "eye", "captioner": "mine", "clips": [{"video": "a.mp4"}]},
    }
    other = {"family": "wan" if family == "vlm" else "vlm", "hub": "us/other"} | (
        {"variant": "5b"} if family == "vlm" else {}
    )
    models = {"mine": {"family": family, "path": str(path)}, "eye": other}
    config = {"models": models, "runs": {"run": {"model": "mine", **runs[family]}}, "results": str(tmp_path / "results")}
    with pytest.raises(UsageError) as fault:
        plan.load(config, 1)
    assert str(fault.value).startswith(f"model mine: {path} {CANNOT}: ") and remedy.format(at=at) in str(fault.value)
    name, output = ("caption_vlm", "a.json") if family == "vlm" else ("encode", "a.safetensors")
    stderr = stage(
        name, "-m", path, "-o", tmp_path / output, *(["a.mp4"] if family == "vlm" else ["--prompt", "a"]), fails=1
    )
    assert remedy.format(at=at) in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("family", ["wan", "longlive", "dynamicrafter", "fresco", "text2video", "vlm"])
def test_a_whole_model_with_further_files_is_not_taken_for_a_published_layout(family, tmp_path):
    shipped = next(path for path in Path("models").iterdir() if FAMILIES[family].detect(path) is not None)
    folder = Path(shutil.copytree(shipped, tmp_path / "model"))
    place(folder, ["model.ckpt", "lora.pt", "best_model.pth", *EXPERTS] if family != "vlm" else ["lora.pt"])
    assert complete_model(Model("mine", family, path=str(folder)), FAMILIES).folder() == folder
    place(tmp_path / "empty", ["README.md"])
    with pytest.raises((JobError, UsageError), match=r"(lack|holds|variant|layout must|config\.json)"):
        model = complete_model(Model("mine", family, path=str(tmp_path / "empty")), FAMILIES)
        weights.check(model, FAMILIES[family])


def test_the_suggested_command_converts_the_weights(tmp_path):
    found = published.longlive(tmp_path / "published")
    ids = {"Wan-AI/Wan2.1-T2V-1.3B-Diffusers": found["us/wan"]}
    path = found["us/longlive"] / "models/longlive_base.pt"
    with serve(ids) as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "hf")}

        def run(*words, fails=0):
            command = [str(Path(sys.executable).with_name(words[0])), *map(str, words[1:])]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == fails, done.stderr
            return done.stderr

        encode = ("encode", "--prompt", "a", "-o", "a.safetensors", "--size", "64*64", "--device", "cpu", "-m")
        stderr = run(*encode, path, fails=1)
        (line,) = re.findall(r": run (convert .*), and use that output as the model$", stderr, re.M)
        assert '"hub": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"' in run(*shlex.split(line))
        output = shlex.split(line)[-1]
        model = complete_model(Model("mine", "longlive", path=output), FAMILIES)
        assert model.options["lora"] == [f"{output}/lora.safetensors"]
        weights.check(Model("mine", "longlive", path=output), FAMILIES["longlive"])


@pytest.mark.parametrize(
    ("family", "variant", "names", "remedy"),
    [
        ("wan", "5b", WAN, "run convert wan --ckpt-dir hub://us/mine --output models/mine"),
        ("vlm", "", ("config.json", "modeling_internvl_chat.py", "model.safetensors"), "OpenGVLab/InternVL3_5-8B-HF"),
    ],
)
def test_fetch_does_not_download_a_repository_in_a_published_layout(family, variant, names, remedy, tmp_path):
    (tmp_path / "config.yaml").write_text(f"models: {{mine: {{family: {family}, variant: '{variant}', hub: us/mine}}}}")
    with serve({"us/mine": place(tmp_path / "weights", names)}) as hub:
        command = [str(Path(sys.executable).with_name("fetch")), "mine"]
        environment = {**os.environ, **hub.environment(tmp_path / "hf")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and f"us/mine {CANNOT}: " in done.stderr and remedy in done.stderr
        assert not any("resolve" in path for _, path in hub.requests)
