"""Two GPUs for one clip: a second process makes the passes with the negative prompt. Here both are on the CPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.families import FAMILIES
from stages.runtime.errors import JobError
from stages.runtime.key import digest_options
from stages.runtime.lease import lease
from stages.runtime.locks import release
from stages.runtime.resident import RESIDENTS
from tests.commands import events, stage_manifest, wait_for
from tests.families.wan.conftest import resolved
from tests.families.wan.test_generate import STEPS, generate

ROOT = Path(__file__).parents[3]
TWO, ULYSSES = ("--gpus", 2), ("--gpus", 2, "--parallel", "ulysses")


def ranks_of(pid):
    """The process ids of the ranks of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"stages.runtime.ranks" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def save_lora(path, seed):
    random, layer = torch.Generator().manual_seed(seed), "blocks.1.attn2.to_k"
    b, a = torch.randn(24, 2, generator=random), torch.randn(2, 24, generator=random)
    save_file({f"transformer.{layer}.lora_A.weight": a, f"transformer.{layer}.lora_B.weight": b}, path)
    return str(path)


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_two_processes_give_the_bits_of_one(variant, encoded, tmp_path, passes, monkeypatch):
    """In float32 and bfloat16, with a LoRA per expert and a third pass, by a job that keeps its models."""
    monkeypatch.setattr(RESIDENTS, "keeps", True)
    monkeypatch.setattr(RESIDENTS, "kept", {})
    options = {"encoded": str(encoded[variant]), "seed": 1, "steps": STEPS}
    options["lora"] = [save_lora(tmp_path / "1.safetensors", 1)]
    if variant == "14b":
        options |= {"lora_2": [save_lora(tmp_path / "2.safetensors", 2)], "guidance_scale_2": 3}
    else:
        options |= {"skip_layers": [1], "skip_layer_interval": [0.3, 0.7], "guidance_interval": [0.0, 0.5]}

    def latents(gpus):
        passes.clear()
        paths = {f"{tmp_path}/{gpus}{dtype}.safetensors": dtype for dtype in ("float32", "bfloat16")}
        rows = [{**options, "dtype": dtype, "gpus": gpus, "output": path} for path, dtype in paths.items()]
        log = events(stage_manifest("generate", tmp_path, rows))
        assert log[-1]["made"] == 2
        return [load_file(path)["latents"] for path in paths], sum(passes.values())

    (alone, all_passes), (shared, own_passes) = latents(1), latents(2)
    assert all(torch.equal(*pair) for pair in zip(alone, shared, strict=True)) and not torch.equal(*alone)
    negative = 2 * (STEPS if variant == "14b" else STEPS // 2)
    assert own_passes == all_passes - negative
    (rank,) = ranks_of(os.getpid())  # one for all
    RESIDENTS.kept.clear()
    wait_for(lambda: not is_alive(rank), "the rank goes on without its models")


def test_an_expert_without_guidance_needs_no_second_process(encoded, tmp_path, passes, monkeypatch):
    started = []
    monkeypatch.setattr("stages.families.wan.generate.Rank", lambda *arguments: started.append(arguments) or FailingRank())
    arguments = ("--guidance-scale", 1, "--guidance-scale-2", 3, "--gpus", 2)
    message = generate(encoded["14b"], tmp_path / "a" / "l.safetensors", *arguments, fails=1)
    assert "error: the low-noise expert came" in message and len(started) == 1
    assert passes["transformer"] == 2  # of its steps at shift 5


class FailingRank:
    def begin(self, method, phase, options):
        raise JobError(f"the {phase}-noise expert came")


@pytest.fixture(params=[TWO, ULYSSES], ids=["cfg", "ulysses"])
def job(request, encoded, tiny_wan, tmp_path, monkeypatch):
    """A process of `generate` with both of two simulated GPUs, in the middle of its work, its ranks, and its log."""
    monkeypatch.setenv("KINEMAKE_GPUS", "2")
    monkeypatch.setenv("KINEMAKE_GPU_LOCKS", str(tmp_path / "locks"))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "stages.generate", encoded["5b"], "-o", tmp_path / "l.safetensors", "--device", "auto"]
    command += [*request.param, "--steps", 1000, "--seed", 1, "--threads", 1]
    with log.open("w") as stderr:
        process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stderr=stderr)
    wait_for(lambda: '"rank": 1' in log.read_text() or process.poll() is not None, "no rank has loaded the model")
    yield process, ranks_of(process.pid), log
    process.kill()
    process.wait()
    release()


def test_a_killed_rank_ends_the_job_in_one_sentence_and_frees_the_gpus(job):
    process, ranks, log = job
    with pytest.raises(Exception, match="no GPU came free"):
        lease(1, timeout=0)
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(60) == 1
    *_, last = log.read_text().splitlines()
    assert last == (
        "error: the process of GPU 2 of this job, its rank 1, was killed by SIGKILL: mend that and run again: "
        "what is finished is kept"
    )
    assert not any(map(is_alive, ranks))
    assert len(lease(2, timeout=5)) == 2


@pytest.mark.parametrize("job", [TWO], indirect=True, ids=["cfg"])
def test_a_killed_job_leaves_no_rank_and_frees_the_gpus(job):
    process, ranks, _ = job
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_alive, ranks)), "a rank outlives its job")
    assert len(lease(2, timeout=5)) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--gpus", 3, "--parallel", "cfg"), "parallel is cfg and gpus is 3, and a step has two passes: set gpus to 2, or"),
        (("--gpus", 2, "--guidance-scale", 1), "gpus is 2 and guidance_scale 1.0 switches guidance off, so a step has one"),
        (("--parallel", "cfg"), "parallel is cfg and gpus is 1: leave parallel out, or set gpus to 2"),
        ((*ULYSSES, "--offload", "leaf_level"), "parallel is ulysses and offload is 'leaf_level', which do not go together"),
        ((*ULYSSES, "--skip-layers", 1), "parallel is ulysses and skip_layers is [1], which do not go together"),
        ((*ULYSSES, "--attention-backend", "flex"), "parallel is ulysses and attention_backend is 'flex', which do not go"),
    ],
)
def test_gpus_that_cannot_share_a_clip_are_refused(options, sentence, encoded, tmp_path):
    assert sentence in generate(encoded["5b"], tmp_path / "l.safetensors", *options, fails=2)


def test_parts_must_be_even(encoded, tmp_path):
    message = generate(encoded["5b"], tmp_path / "l.safetensors", "--gpus", 3, "--parallel", "ulysses", fails=1)
    assert "gpus is 3, which does not divide 2 attention heads and" in message and ": set gpus to 2" in message


def test_a_key_depends_on_ulysses_alone_which_rounds_otherwise():
    declared = FAMILIES["wan"].stages["generate"].options.declared
    given = ({}, {"gpus": 2}, {"gpus": 2, "parallel": "layers"}, {"gpus": 2, "parallel": "ulysses"})
    alone, cfg, layers, ulysses = (digest_options(declared, resolved(**one)) for one in given)
    assert alone == cfg == layers != ulysses


# ------------------------------------------------------------------------------------------------------------- ulysses


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_ulysses_on_two_processes_gives_the_latents_of_one(variant, encoded, tmp_path):
    """Without guidance, which would multiply the difference of two passes."""
    arguments = ("--steps", 3, "--guidance-scale", 1, "--lora", save_lora(tmp_path / "1.safetensors", 1))
    arguments += ("--boundary-ratio", 0) if variant == "14b" else ()
    alone = generate(encoded[variant], tmp_path / "a" / "l.safetensors", *arguments)
    together = generate(encoded[variant], tmp_path / "b" / "l.safetensors", *arguments, *ULYSSES)
    assert (together - alone).abs().max() <= 1e-6
    assert not ranks_of(os.getpid())
