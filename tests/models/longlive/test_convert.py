"""What convert longlive takes, what it refuses in one sentence, and that it leaves nothing behind then."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.models import FAMILIES
from stages.models.longlive.options import detect
from stages.runtime.model import find_model
from tests.commands import convert

GOLDEN = Path(__file__).parents[2] / "golden/longlive"
FIRST = "model._fsdp_wrapped_module.patch_embedding.weight"


def checkpoint(name="longlive_base.pt"):
    return torch.load(GOLDEN / name, weights_only=True)


@pytest.fixture
def run(tmp_path, wan_repository):
    """Convert what is given, a checkpoint or a path, to the folder output."""

    def run(base=GOLDEN / "longlive_base.pt", *arguments, lora=None, **options):
        given = {"--base": base, "--lora": lora}
        for flag, value in given.items():
            if value is not None and not isinstance(value, Path):
                given[flag] = tmp_path / f"given{flag}.pt"
                torch.save(value, given[flag])
        paths = [word for flag, value in given.items() if value is not None for word in (flag, value)]
        said = convert(
            "longlive", *paths, "--wan", wan_repository, "--output", tmp_path / "made/output", *arguments, **options
        )
        return said, tmp_path / "made/output"

    return run


def refused(run, *arguments, **options):
    said, output = run(*arguments, **options, fails=2)
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    assert list(output.parent.glob("*")) == list(output.parent.glob(".*")) == []
    return line


def test_the_output_is_a_whole_repository(run, wan_repository):
    _, output = run(lora=GOLDEN / "lora.pt")
    assert detect(output) == ""
    shared = [path.relative_to(wan_repository) for path in wan_repository.rglob("*.*") if "transformer" not in path.parts]
    assert len(shared) == 8
    assert all(os.path.samefile(output / path, wan_repository / path) for path in shared)
    made = {path.relative_to(output).as_posix() for path in output.rglob("*.*")} - {path.as_posix() for path in shared}
    transformer = {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}
    assert made == {"lora.safetensors", "kinemake.json", *transformer}
    lora = str(output / "lora.safetensors")
    assert find_model(str(output), None, FAMILIES).options == {"lora": lora}


def test_symbolic_links_of_a_cache_become_files(run, wan_repository):
    config = wan_repository / "vae/config.json"
    blob = config.rename(wan_repository / "blob")
    config.symlink_to(blob)
    _, output = run()
    assert not (output / "vae/config.json").is_symlink()
    assert (output / "vae/config.json").read_text() == blob.read_text()
    blob.replace(config)


@pytest.mark.parametrize(
    "entries, arguments, taken",
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
def test_the_weights_that_the_published_configs_use_or_the_averaged_ones(run, entries, arguments, taken):
    given = {"step": 3}
    for number, entry in enumerate(entries):
        given[entry] = dict(checkpoint()["generator"])
        given[entry]["model.head.modulation"] = given[entry]["model.head.modulation"] + number
    said, output = run(given, *arguments)
    made = load_file(output / "transformer/diffusion_pytorch_model.safetensors")["scale_shift_table"]
    assert torch.equal(made, given[taken]["model.head.modulation"])
    assert f'"entry": "{taken}"' in said


def test_a_checkpoint_may_have_one_model_and_no_generator(run):
    _, output = run({"model": checkpoint()["generator"]})
    assert (output / "transformer/config.json").exists()


def test_weights_keep_their_precision_and_need_not_lie_in_order(run):
    given = checkpoint()
    key = "model._fsdp_wrapped_module.blocks.0.ffn.0.weight"
    weight = given["generator_ema"][key].bfloat16()
    given["generator_ema"][key] = weight.T.contiguous().T
    _, output = run(given, "--ema")
    made = load_file(output / "transformer/diffusion_pytorch_model.safetensors")["blocks.0.ffn.net.0.proj.weight"]
    assert made.dtype == torch.bfloat16 and torch.equal(made, weight)


def test_files_of_the_old_format_are_read_too(run, tmp_path):
    torch.save(checkpoint(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    _, output = run(tmp_path / "old.pt")
    assert (output / "transformer/config.json").exists()


def test_an_absent_entry_is_named_with_those_that_are_there(run):
    given = checkpoint()
    del given["generator_ema"]
    line = refused(run, given, "--ema")
    assert "no generator_ema" in line and "generator, step" in line and "leave --ema out" in line
    assert "no generator " in refused(run, {"critic": {}})
    assert "give longlive_base.pt" in refused(run, {"critic": {}}, "--ema")


def test_weights_that_are_missing_or_too_many_or_misshapen_are_counted_and_the_first_is_named(run):
    given = checkpoint()
    weight = given["generator_ema"].pop(FIRST)
    del given["generator_ema"]["model._fsdp_wrapped_module.patch_embedding.bias"]
    assert "2 missing, the first: patch_embedding.weight" in refused(run, given, "--ema")
    given = checkpoint()
    given["generator_ema"]["model.img_emb.proj.0.weight"] = weight
    assert "1 unexpected, the first: img_emb.proj.0.weight" in refused(run, given, "--ema")
    given = checkpoint()
    given["generator_ema"][FIRST] = weight[:-1].clone()
    assert "1 of another shape, the first: patch_embedding.weight is [47, 4, 1, 2, 2]" in refused(run, given, "--ema")


def test_a_weight_is_not_silently_taken_from_two(run):
    given = checkpoint()
    given["generator_ema"]["model.patch_embedding.weight"] = given["generator_ema"][FIRST]
    assert "patch_embedding.weight twice" in refused(run, given, "--ema")


def test_entries_that_are_no_weights(run):
    assert "something else than weights" in refused(run, {"generator_ema": {"model.step": 3}})


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not a checkpoint"])
def test_a_damaged_file(run, tmp_path, damage):
    path = tmp_path / "torn.pt"
    path.write_bytes(damage((GOLDEN / "longlive_base.pt").read_bytes()))
    assert f"{path} cannot be read" in refused(run, path)
    assert f"{path} cannot be read" in refused(run, lora=path)


@pytest.mark.parametrize("odd", [{1: torch.ones(2)}, {"a": torch.ones(2, 2).to_sparse()}, {"a": torch.ones(2, dtype=int)}])
def test_a_checkpoint_of_something_else_than_weights(run, odd):
    assert "has something else than weights by name" in refused(run, {"generator": odd})


def test_a_file_that_holds_code_is_not_run(run, tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    assert "cannot be read" in refused(run, {"generator_ema": Code()})
    assert not (tmp_path / "touched").exists()


def test_an_output_that_exists_stays_as_it_is(run):
    _, output = run()
    before = (output / "model_index.json").stat()
    assert f"{output} exists" in run(fails=2)[0]
    assert (output / "model_index.json").stat() == before


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(run, tmp_path):
    (tmp_path / "made").write_text("a file in the way")
    (line,) = run(fails=1)[0].splitlines()
    assert "cannot be written" in line


@pytest.mark.parametrize("part", ["vae", "transformer", "model_index.json"])
def test_a_repository_that_is_not_whole(run, wan_repository, part):
    hidden = (wan_repository / part).rename(wan_repository / "hidden")
    try:
        assert f"has no {part}" in refused(run)
    finally:
        hidden.rename(wan_repository / part)


def test_a_repository_of_another_model(tmp_path, tiny_wan):
    output = tmp_path / "output"
    said = convert("longlive", "--base", GOLDEN / "longlive_base.pt", "--wan", tiny_wan["14b"], "--output", output, fails=2)
    assert "another model" in said and not output.exists()


def test_a_bare_lora_is_the_same_as_one_in_an_entry(run):
    _, output = run(lora=checkpoint("lora.pt")["generator_lora"])
    lora = load_file(output / "lora.safetensors")
    assert len(lora) == 80
    given = checkpoint("lora.pt")["generator_lora"]["base_model.model.blocks.3.cross_attn.o.lora_B.weight"]
    assert torch.equal(lora["blocks.3.attn2.to_out.0.lora_B.weight"], given)


def test_a_lora_that_does_not_fit(run):
    key = "base_model.model.blocks.0.self_attn.q.lora_{}.weight"

    def changed(change):
        weights = checkpoint("lora.pt")["generator_lora"]
        change(weights)
        return refused(run, lora=weights)

    assert "1 missing, the first: blocks.0.attn1.to_q.lora_B.weight" in changed(lambda w: w.pop(key.format("B")))
    assert "rank 7, 8" in changed(lambda w: w.update({key.format("A"): torch.zeros(7, 48)}))
    assert "is [47, 8] and not [48, 8]" in changed(lambda w: w.update({key.format("B"): torch.zeros(47, 8)}))
    elsewhere = "base_model.model.blocks.4.self_attn.q.lora_A.weight"
    assert "blocks.4.attn1.to_q.lora_A.weight" in changed(lambda w: w.update({elsewhere: torch.zeros(8, 48)}))
    for kind in ("alpha", "diff_b", "lora_magnitude_vector"):
        line = changed(lambda w: w.update({f"base_model.model.blocks.0.self_attn.q.{kind}": torch.ones(48)}))  # noqa: B023
        assert f"blocks.0.attn1.to_q.{kind}, which is neither lora_A nor lora_B" in line
    assert "rank none" in refused(run, lora={})
