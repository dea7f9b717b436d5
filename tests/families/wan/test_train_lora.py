"""LoRAs of a Wan model, trained on clips and distilled from it: their file, what they change, and what they learn."""

import json
import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from safetensors.torch import load_file, save_file

from stages.families.shared.training.data import collate
from stages.families.wan.options import DISTILLATION, LORA_TRAINING
from stages.families.wan.train_lora import DistillationTask, LoraTask
from tests.commands import stage, train_model

SHORT = {"warmup_steps": 0, "max_steps": 2, "validate_every": 2, "save_every": 2, "validation_samples": 2}
CLIPS = {
    "data": "shapes",
    "num_frames": 5,
    "frame_size": 64,
    "batch_size": 2,
    "max_samples": 4,
    "learning_rate": 1e-2,
    **SHORT,
}
LORA = {**CLIPS, "rank": 4, "lora_alpha": 6.0, "max_sequence_length": 24, "ema_decay": 0.0}
STUDENT = {**LORA, "num_inference_steps": 2, "teacher_steps": 4, "shift": 3.0, "negative_prompt": "a blue square"}
TWO_FILES = ["pytorch_lora_weights", "pytorch_lora_weights_2"]
FILES = {"5b": ["pytorch_lora_weights"], "14b": TWO_FILES, "14b-t2v": TWO_FILES}
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = ("transformer", "transformer_2")
LAYERS = {  # Wan's own names of the linear layers of a block, and those of diffusers
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


@pytest.fixture(scope="module")
def trained(tiny_wan, tmp_path_factory):
    """The folders of models with a trained LoRA, by variant."""
    folder = tmp_path_factory.mktemp("lora")
    return {
        variant: train_model("wan-lora", folder / variant, {**LORA, "start_from": str(tiny_wan[variant])})
        for variant in tiny_wan
    }


@pytest.fixture(scope="module")
def students(tiny_wan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    return {
        variant: train_model("wan-distill", folder / variant, {**STUDENT, "start_from": str(tiny_wan[variant])})
        for variant in tiny_wan
    }


def task_of(training, task, config, **options):
    return task(training.options.resolved({**config, **options}), {})


# ---------------------------------------------------------------------------------------------------------------- file


@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_a_lora_has_the_names_and_the_alpha_of_published_files(variant, trained):
    for file in FILES[variant]:
        tensors = load_file(trained[variant] / f"{file}.safetensors")
        assert all(tensor.any() for tensor in tensors.values())
        for layer in (f"diffusion_model.blocks.{block}.{layer}" for block in range(2) for layer in LAYERS):
            down, up, alpha = (tensors.pop(f"{layer}.{kind}") for kind in ("lora_down.weight", "lora_up.weight", "alpha"))
            assert (down.shape[0], up.shape[1], alpha.shape, float(alpha)) == (4, 4, (), 6.0)
        assert not tensors


@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_a_lora_gives_the_stages_the_weights_that_diffusers_makes_of_it(variant, trained, tiny_wan, encoded, tmp_path):
    """`generate` with the trained folder equals `generate` with W + B A, summed in float64 from what diffusers reads."""
    summed = shutil.copytree(tiny_wan[variant], tmp_path / "summed")
    for part, file in zip(PARTS, FILES[variant], strict=False):
        weights = load_file(summed / part / WEIGHTS)
        read = WanLoraLoaderMixin.lora_state_dict(str(trained[variant]), weight_name=f"{file}.safetensors")
        layers = [name.removesuffix(".lora_A.weight") for name in read if name.endswith(".lora_A.weight")]
        assert len(layers) == 2 * len(LAYERS)
        for layer in layers:
            a, b = (read[f"{layer}.lora_{matrix}.weight"].double() for matrix in "AB")
            name = f"{layer.removeprefix('transformer.')}.weight"
            weights[name] = (weights[name].double() + b @ a).float()
        save_file(weights, summed / part / WEIGHTS, {"format": "pt"})
    outputs = []
    for model in (trained[variant], summed, tiny_wan[variant]):
        output = tmp_path / f"{len(outputs)}.safetensors"
        stage("generate", encoded[variant], "-o", output, "-m", model, "--steps", 2, "--seed", 1, "--dtype", "float32")
        outputs.append(load_file(output)["latents"])
    ours, theirs, plain = outputs
    assert (ours - plain).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_the_weights_beside_a_lora_are_those_it_was_trained_for(variant, trained, tiny_wan):
    for path in tiny_wan[variant].rglob("*.safetensors"):
        assert (trained[variant] / path.relative_to(tiny_wan[variant])).read_bytes() == path.read_bytes()


def test_a_training_of_some_layers_leaves_the_others_out(tiny_wan, tmp_path):
    config = {
        **LORA,
        "start_from": str(tiny_wan["5b"]),
        "target_modules": ["attn2.to_q", "ffn.net.2"],
        "save_dtype": "float16",
    }
    model = train_model("wan-lora", tmp_path / "t", config)
    tensors = load_file(model / "pytorch_lora_weights.safetensors")
    kinds = ("lora_down.weight", "lora_up.weight", "alpha")
    assert tensors.keys() == {
        f"diffusion_model.blocks.{block}.{layer}.{kind}"
        for block in range(2)
        for layer in ("cross_attn.q", "ffn.2")
        for kind in kinds
    }
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())


def test_gradient_checkpointing_gives_the_same_lora(trained, tiny_wan, tmp_path):
    config = {**LORA, "start_from": str(tiny_wan["5b"]), "gradient_checkpointing": True}
    model = train_model("wan-lora", tmp_path / "t", config)
    first, second = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (trained["5b"], model))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("variant", FILES)
def test_the_first_loss_of_a_lora_is_that_of_the_model(variant, tiny_wan):
    """B is zero at first: the velocity error of the frozen model, at the sigma that the network is given."""
    task = task_of(LORA_TRAINING, LoraTask, LORA, start_from=str(tiny_wan[variant]), text_dropout=0, first_frame_share=0)
    plain = [WanTransformer3DModel.from_pretrained(tiny_wan[variant] / part) for part in PARTS[: len(task.experts)]]
    items = [task.data[0][i] for i in range(2)]
    batch, losses = collate(items), []
    for experts in (task.experts, torch.nn.ModuleList(plain)):
        task.experts = experts
        losses.append(float(task(batch, 0, torch.Generator().manual_seed(1)).detach()))
    assert losses[0] == losses[1] > 0.1


@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_a_lora_in_bfloat16_has_matrices_and_gradients_in_float32(variant, tiny_wan):
    options = {"start_from": str(tiny_wan[variant]), "mixed_precision": "bf16"}
    task = task_of(DISTILLATION, DistillationTask, STUDENT, **options)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task(collate([task.data[0][i] for i in range(2)]), 0, torch.Generator().manual_seed(0))
    loss.backward()
    trained = {name: weight for name, weight in task.named_parameters() if weight.requires_grad}
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in trained.values())
    assert all(weight.grad.any() for name, weight in trained.items() if name.endswith(".up"))
    assert {weight.dtype for name, weight in task.experts.named_parameters() if ".layer.weight" in name} == {torch.bfloat16}


def test_a_resumed_distillation_ends_with_the_same_lora(tiny_wan, tmp_path):
    config = {**STUDENT, "start_from": str(tiny_wan["5b"]), "schedule": "constant"}
    for folder, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            train_model("wan-distill", tmp_path / folder, {**config, "max_steps": stop})
    whole, resumed = (load_file(tmp_path / folder / "training" / "last.safetensors") for folder in ("whole", "parts"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert {name.rpartition(".")[2] for name in whole} == {"down", "up"}  # no frozen weight is in the state
    stderr = train_model("wan-distill", tmp_path / "parts", {**config, "teacher_steps": 8}, fails=2)
    assert "error: teacher_steps is 8 and the training in" in stderr


# -------------------------------------------------------------------------------------------------------- distillation


class Constant(torch.nn.Module):
    """A transformer that predicts the mean of its prompt's embeddings everywhere, and records its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, hidden, time, text, return_dict):
        self.calls.append(time)
        return (text.mean((1, 2)).view(-1, 1, 1, 1, 1).expand(len(hidden), self.channels, *hidden.shape[2:]),)


@pytest.mark.parametrize("variant", ["5b", "14b"])
def test_the_teacher_follows_its_guided_velocity(variant, tiny_wan):
    """With a velocity v that is constant in time, x at sigma is noise + (sigma - 1) v, whatever the solver."""
    guidance, shift = 3.0, 3.0
    options = {"start_from": str(tiny_wan[variant]), "guidance_scale": guidance, "first_frame_share": 0, "prefix_share": 0}
    task = task_of(DISTILLATION, DistillationTask, STUDENT, **options)
    channels = task.vae.config.z_dim
    for expert in (made := torch.nn.ModuleList(Constant() for _ in task.experts)):
        expert.channels = channels
    task.experts = made
    item = task.data[0][1]
    with torch.no_grad():
        cond, uncond = (task.embed([text]).double().mean() for text in (item["text"], "a blue square"))
    velocity = uncond + guidance * (cond - uncond)
    assert abs(cond - uncond) > 1e-3
    sigmas = [shift * s / (1 + (shift - 1) * s) for s in (1, 0.5, 0)]
    points = item["points"].double()
    for point, sigma in zip(points, sigmas, strict=True):
        torch.testing.assert_close(point, points[0] + (sigma - 1) * velocity, rtol=0, atol=1e-5)
    noise = points[0]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_the_student_learns_the_mean_velocity_between_two_points(tiny_wan):
    """For a teacher with guidance g and constant velocities, the error of its own unguided prediction is (g - 1) (c - u)."""
    guidance = 3.0
    options = {"start_from": str(tiny_wan["5b"]), "guidance_scale": guidance, "prefix_share": 0, "first_frame_share": 0.5}
    task = task_of(DISTILLATION, DistillationTask, STUDENT, **options)
    task.experts = torch.nn.ModuleList([expert := Constant()])
    expert.channels = task.vae.config.z_dim
    batch = collate([task.data[0][i] for i in range(4)])
    expert.calls.clear()
    with torch.no_grad():
        loss = float(task(batch, 0, torch.Generator().manual_seed(0)))
        cond = task.embed(batch["text"]).double().mean((1, 2))
        uncond = task.embed(["a blue square"]).double().mean()
    ((time,),) = [expert.calls]
    assert {round(value) for value in time[:, -1].tolist()} <= {1000, 750}  # shift 3: sigmas 1 and 0.75
    tokens = torch.tensor([1.0 if known else 2.0 for known in batch["known"]])  # latent frames in the error
    expected = (((guidance - 1) * (cond - uncond)) ** 2 * tokens).sum() / tokens.sum()
    assert loss == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("variant", FILES)
def test_a_student_is_used_with_the_steps_it_was_trained_for(variant, students, tiny_wan, encoded, tmp_path):
    """`generate -m STUDENT` is `generate` with the model, the LoRA files and the Euler steps by name."""
    files = [students[variant] / f"{file}.safetensors" for file in FILES[variant]]
    loras = [word for option, file in zip(("--lora", "--lora-2"), files, strict=False) for word in (option, file)]
    steps = ("--sampler", "euler", "--steps", 2, "--shift", 3.0, "--guidance-scale", 1)
    outputs = []
    for number, arguments in enumerate([("-m", students[variant]), ("-m", tiny_wan[variant], *loras, *steps)]):
        output = tmp_path / f"{number}.safetensors"
        stage("generate", encoded[variant], "-o", output, *arguments, "--seed", 1, "--dtype", "float32")
        outputs.append(load_file(output)["latents"])
    assert torch.equal(*outputs)
    settings = json.loads((students[variant] / "kinemake.json").read_text())["options"]
    assert settings["lora"] == ["pytorch_lora_weights.safetensors"] and settings["sampler"] == "euler"


# --------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "name, config, sentence",
    [
        ("wan-lora", {"start_from": ""}, "start_from is not given: give --start-from, the folder of the model"),
        (
            "wan-lora",
            {"start_from": "nowhere"},
            "nowhere is no Wan2.2 model in diffusers' layout: give --start-from ",
        ),
        ("wan-lora", {"start_from": "trained"}, "has a LoRA: give --start-from the model that this LoRA was trained for"),
        (
            "wan-lora",
            {"target_modules": ["to_z"]},
            "target_modules names 'to_z', which is no linear layer: known are attn1.to_q",
        ),
        ("wan-lora", {"target_modules": []}, "target_modules is empty: name the linear layers to train, such as to_q"),
        ("wan-lora", {"rank": 0}, "option rank is 0: it must be at least 1"),
        ("wan-distill", {"teacher_steps": 5}, "teacher_steps is 5 and num_inference_steps 2: give a multiple of"),
        (
            "wan-distill",
            {"start_from": "14b", "boundary_ratio": 1.0, "num_inference_steps": 1},
            "boundary_ratio is 1.0 and leaves an expert without a step: ",
        ),
    ],
)
def test_an_impossible_training_of_a_lora_is_one_sentence(name, config, sentence, tiny_wan, trained, tmp_path):
    folders = {"14b": str(tiny_wan["14b"]), "trained": str(trained["5b"])}
    start = config.get("start_from", str(tiny_wan["5b"]))
    config = {**(STUDENT if name == "wan-distill" else LORA), **config, "start_from": folders.get(start, start)}
    stderr = train_model(name, tmp_path / "t", config, fails=2)
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and sentence in lines[0] and lines[0].startswith("error: "), stderr
