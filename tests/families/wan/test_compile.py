"""`compile: blocks` of Wan: what it computes, where its code is kept, one graph per size, and what it refuses."""

import pytest
import torch
from torch._dynamo.utils import counters

from stages.families.shared import compiling
from stages.families.wan.options import GenerateOptions
from stages.runtime.errors import UsageError
from stages.runtime.key import digest_options
from tests.families.wan.conftest import encode, resolved
from tests.families.wan.test_generate import generate

BLOCKS, ONE_STEP = ("--compile", "blocks"), ("--steps", 1, "--guidance-scale", 1)


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path, monkeypatch):
    """Nothing is compiled yet, in memory or in the cache."""
    monkeypatch.setenv("KINEMAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=1):
        yield
    torch._dynamo.reset()


def test_compiled_blocks_give_the_latents_but_for_rounding(encoded, tmp_path):
    eager = generate(encoded["5b"], tmp_path / "eager" / "l.safetensors", *ONE_STEP)
    compiled = generate(encoded["5b"], tmp_path / "compiled" / "l.safetensors", *ONE_STEP, *BLOCKS)
    assert (compiled - eager).abs().max() <= 1e-5 * eager.abs().max()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]  # two blocks, alike
    assert any((tmp_path / "cache" / "inductor").rglob("*.so"))


def test_each_size_is_compiled_once_for_both_experts(tiny_wan, encoded, image, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    short = tmp_path / "short.safetensors"
    encode(image, short, tiny_wan["14b"], "float32", frames=5)
    for number, (clip, graphs) in enumerate([(encoded["14b"], 1), (short, 2), (encoded["14b"], 2)]):
        generate(clip, tmp_path / str(number) / "l.safetensors", "--steps", 4, *BLOCKS)
        assert counters["stats"]["unique_graphs"] == graphs


def test_a_missing_compiler_is_named_before_any_weights_are_loaded(encoded, tmp_path, monkeypatch, passes):
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = generate(encoded["5b"], tmp_path / "l.safetensors", *BLOCKS, fails=1)
    assert "error: compile blocks needs a compiler, and there is no no-such-compiler here: install one, or set" in message
    assert not passes


@pytest.mark.parametrize(
    "given",
    [
        {"offload": "block_level"},
        {"layerwise_casting": "float8_e4m3fn"},
        {"quantization": "int8_weight_only"},
        {"step_cache": "first_block"},
        {"skip_layers": [1]},
        {"gpus": 2},
        {"gpus": 2, "parallel": "ulysses"},
    ],
    ids=str,
)
def test_compile_refuses_what_puts_hooks_on_the_blocks(given):
    name = next(iter(given))
    with pytest.raises(UsageError, match=f"compile is blocks and {name} is .*, which do not go together: leave one of them"):
        resolved(compile="blocks", **given)


def test_compile_is_in_the_key_and_without_it_the_key_is_as_before():
    declared = GenerateOptions.declared
    before = [one for one in declared if one.name != "compile"]
    assert digest_options(before, resolved()) == digest_options(declared, resolved())
    assert digest_options(declared, resolved()) != digest_options(declared, resolved(compile="blocks"))
