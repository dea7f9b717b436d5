"""`convert longlive`: the files that it takes, and those that it refuses in one sentence without writing anything."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.families import FAMILIES
from stages.families.longlive.options import detect
from stages.runtime.model import find_model
from tests.commands import convert

GOLDEN = Path(__file__).parents[2] / "golden/longlive"
FIRST = "model._fsdp_wrapped_module.patch_embedding.weight"


def checkpoint(name="longlive_base.pt"):
    return torch.load(GOLDEN / name, weights_only=True)


@pytest.fixture
def run(tmp_path, wan_repository):
    """A function that converts a checkpoint, or a file by path, and returns the standard error and the output folder."""

    def run(base=GOLDEN / "longlive_base.pt", *arguments, lora=None, **options):
        files = {"--base": base, "--lora": lora}
        for flag, value in files.items():
            if value is not None and not isinstance(value, Path):
                files[flag] = tmp_path / f"given{flag}.pt"
                torch.save(value, files[flag])
        paths = [word for flag, value in files.items() if value is not None for word in (flag, value)]
        stderr = convert(
            "longlive", *paths, "--wan", wan_repository, "--output", tmp_path / "made/output", *arguments, **options
        )
        return stderr, tmp_path / "made/output"

    return run


def refusal(run, *arguments, **options):
    stderr, output = run(*arguments, **options, fails=2)
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    assert list(output.parent.glob("*")) == list(output.parent.glob(".*")) == []
    return line


def test_convert_longlive_writes_a_complete_repository(run, wan_repository):
    _, output = run(lora=GOLDEN / "lora.pt")
    assert detect(output) == ""
    shared = [path.relative_to(wan_repository) for path in wan_repository.rglob("*.*") if "transformer" not in path.parts]
    assert len(shared) == 8
    assert all(os.path.samefile(output / path, wan_repository / path) for path in shared)
    written = {path.relative_to(output).as_posix() for path in output.rglob("*.*")} - {path.as_posix() for path in shared}
    transformer = {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}
    assert written == {"lora.safetensors", "kinemake.json", *transformer}
    lora = str(output / "lora.safetensors")
    assert find_model(str(output), None, FAMILIES).options == {"lora": [lora]}


def test_convert_longlive_replaces_symbolic_links_by_files(run, wan_repository):
    config = wan_repository / "vae/config.json"
    blob = config.rename(wan_repository / "blob")
    config.symlink_to(blob)
    _, output = run()
    assert not (output / "vae/config.json").is_symlink()
    assert (output / "vae/config.json").read_text() == blob.read_text()
    blob.replace(config)


@pytest.mark.parametrize(
    "entries, arguments, expected",
    [
        (("generator", "generator_ema"), (), "generator"),  # `use_ema: false` in all published configs
        (("generator_ema", "generator"), ("--no-ema",), "generator"),
        (("generator", "generator_ema"), ("--ema",), "generator_ema"),
        (("generator",), (), "generator"),
        (("generator_ema",), (), "generator_ema"),
        (("generator_ema",), ("--ema",), "generator_ema"),
        (("model",), (), "model"),
        (("generator", "model"), (), "generator"),
    ],
)
def test_convert_longlive_takes_the_generator_or_the_averaged_weights(run, entries, arguments, expected):
    checkpoints = {"step": 3}
    for number, entry in enumerate(entries):
        checkpoints[entry] = dict(checkpoint()["generator"])
        checkpoints[entry]["model.head.modulation"] = checkpoints[entry]["model.head.modulation"] + number
    stderr, output = run(checkpoints, *arguments)
    table = load_file(output / "transformer/diffusion_pytorch_model.safetensors")["scale_shift_table"]
    assert torch.equal(table, checkpoints[expected]["model.head.modulation"])
    assert f'"entry": "{expected}"' in stderr
    assert find_model(str(output), None, FAMILIES).options == ({"ema": True} if "--ema" in arguments else {})


def test_convert_longlive_takes_a_checkpoint_with_a_bare_model(run):
    _, output = run({"model": checkpoint()["generator"]})
    assert (output / "transformer/config.json").exists()


def test_convert_longlive_keeps_precision_and_takes_transposed_weights(run):
    tensors = checkpoint()
    key = "model._fsdp_wrapped_module.blocks.0.ffn.0.weight"
    weight = tensors["generator_ema"][key].bfloat16()
    tensors["generator_ema"][key] = weight.T.contiguous().T
    _, output = run(tensors, "--ema")
    converted = load_file(output / "transformer/diffusion_pytorch_model.safetensors")["blocks.0.ffn.net.0.proj.weight"]
    assert converted.dtype == torch.bfloat16 and torch.equal(converted, weight)


def test_convert_longlive_reads_the_old_pickle_format(run, tmp_path):
    torch.save(checkpoint(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _, output = run(tmp_path / "old.pt")
    assert (output / "transformer/config.json").exists()


def test_convert_longlive_names_an_absent_entry_and_the_present_ones(run):
    tensors = checkpoint()
    del tensors["generator_ema"]
    line = refusal(run, tensors, "--ema")
    assert "no generator_ema" in line and "generator, step" in line and "leave --ema out" in line
    assert "no generator " in refusal(run, {"critic": {}})
    assert "give longlive_base.pt" in refusal(run, {"critic": {}}, "--ema")


def test_convert_longlive_counts_missing_unexpected_and_misshapen_weights(run):
    tensors = checkpoint()
    weight = tensors["generator_ema"].pop(FIRST)
    del tensors["generator_ema"]["model._fsdp_wrapped_module.patch_embedding.bias"]
    assert "2 missing, the first: patch_embedding.weight" in refusal(run, tensors, "--ema")
    tensors = checkpoint()
    tensors["generator_ema"]["model.img_emb.proj.0.weight"] = weight
    assert "1 unexpected, the first: img_emb.proj.0.weight" in refusal(run, tensors, "--ema")
    tensors = checkpoint()
    tensors["generator_ema"][FIRST] = weight[:-1].clone()
    assert "1 of another shape, the first: patch_embedding.weight is [47, 4, 1, 2, 2]" in refusal(run, tensors, "--ema")


def test_convert_longlive_refuses_a_weight_that_is_there_twice(run):
    tensors = checkpoint()
    tensors["generator_ema"]["model.patch_embedding.weight"] = tensors["generator_ema"][FIRST]
    assert "patch_embedding.weight twice" in refusal(run, tensors, "--ema")


def test_convert_longlive_refuses_entries_that_are_no_weights(run):
    assert "something other than weights" in refusal(run, {"generator_ema": {"model.step": 3}})


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not a checkpoint"])
def test_convert_longlive_refuses_a_damaged_file(run, tmp_path, damage):
    path = tmp_path / "torn.pt"
    path.write_bytes(damage((GOLDEN / "longlive_base.pt").read_bytes()))
    assert f"{path} cannot be read" in refusal(run, path)
    assert f"{path} cannot be read" in refusal(run, lora=path)


@pytest.mark.parametrize("odd", [{1: torch.ones(2)}, {"a": torch.ones(2, 2).to_sparse()}, {"a": torch.ones(2, dtype=int)}])
def test_convert_longlive_refuses_a_file_without_weights(run, odd):
    assert "holds something other than weights by name" in refusal(run, {"generator": odd})


def test_convert_longlive_does_not_run_code_in_a_file(run, tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    assert "cannot be read" in refusal(run, {"generator_ema": Code()})
    assert not (tmp_path / "touched").exists()


def test_convert_longlive_does_not_change_an_existing_output(run):
    _, output = run()
    before = (output / "model_index.json").stat()
    assert f"{output} exists" in run(fails=2)[0]
    assert (output / "model_index.json").stat() == before


def test_convert_longlive_reports_an_unwritable_folder_in_one_sentence(run, tmp_path):
    (tmp_path / "made").write_text("a file in the way")
    (line,) = run(fails=1)[0].splitlines()
    assert "cannot be written" in line


@pytest.mark.parametrize("part", ["vae", "transformer", "model_index.json"])
def test_convert_longlive_refuses_an_incomplete_wan_repository(run, wan_repository, part):
    hidden = (wan_repository / part).rename(wan_repository / "hidden")
    try:
        assert f"has no {part}" in refusal(run)
    finally:
        hidden.rename(wan_repository / part)


def test_convert_longlive_refuses_a_repository_of_another_model(tmp_path, tiny_wan):
    output = tmp_path / "output"
    stderr = convert(
        "longlive", "--base", GOLDEN / "longlive_base.pt", "--wan", tiny_wan["14b"], "--output", output, fails=2
    )
    assert "another model" in stderr and not output.exists()


def test_convert_longlive_takes_a_bare_lora_and_one_in_an_entry(run):
    _, output = run(lora=checkpoint("lora.pt")["generator_lora"])
    lora = load_file(output / "lora.safetensors")
    assert len(lora) == 80
    weight = checkpoint("lora.pt")["generator_lora"]["base_model.model.blocks.3.cross_attn.o.lora_B.weight"]
    assert torch.equal(lora["blocks.3.attn2.to_out.0.lora_B.weight"], weight)


def test_convert_longlive_refuses_a_lora_that_does_not_fit(run):
    key = "base_model.model.blocks.0.self_attn.q.lora_{}.weight"

    def convert_changed(change):
        weights = checkpoint("lora.pt")["generator_lora"]
        change(weights)
        return refusal(run, lora=weights)

    assert "1 missing, the first: blocks.0.attn1.to_q.lora_B.weight" in convert_changed(lambda w: w.pop(key.format("B")))
    assert "rank 7, 8" in convert_changed(lambda w: w.update({key.format("A"): torch.zeros(7, 48)}))
    assert "is [47, 8] and not [48, 8]" in convert_changed(lambda w: w.update({key.format("B"): torch.zeros(47, 8)}))
    elsewhere = "base_model.model.blocks.4.self_attn.q.lora_A.weight"
    assert "blocks.4.attn1.to_q.lora_A.weight" in convert_changed(lambda w: w.update({elsewhere: torch.zeros(8, 48)}))
    for kind in ("alpha", "diff_b", "lora_magnitude_vector"):
        line = convert_changed(lambda w: w.update({f"base_model.model.blocks.0.self_attn.q.{kind}": torch.ones(48)}))  # noqa: B023
        assert f"blocks.0.attn1.to_q.{kind}, which is neither lora_A nor lora_B" in line
    assert "rank none" in refusal(run, lora={})


def test_converted_files_have_the_permissions_of_the_umask(run, tmp_path):
    _, output = run(lora=checkpoint("lora.pt"))
    (tmp_path / "any").touch()
    written = [path for path in output.rglob("*.safetensors") if path.stat().st_nlink == 1]
    assert {path.name for path in written} >= {"lora.safetensors", "diffusion_pytorch_model.safetensors"}
    assert {path.stat().st_mode for path in written} == {(tmp_path / "any").stat().st_mode}
