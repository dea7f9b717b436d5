"""Seconds per clip of `generate` against diffusers' own pipeline, and what each lever saves, on a random Wan2.2 5B of 0.2e9
weights.

The peer is `WanImageToVideoPipeline` from noise to latents with the same weights, prompt, steps and guidance; its text
encoder and VAE are tiny. Both are measured in this process without the loading of weights, and alternate. The levers are
options of `generate`; with them the number of blocks that compute is counted. With compile blocks, cold is the first clip
of the first process, warm its second clip, and cached the first clip of another process.

    python -m benchmarks.sampling [--quick] [--json FILE]
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from benchmarks.harness import alternate, finish, in_fresh_process, median, parse_arguments, print_table

LARGE = {"num_attention_heads": 8, "attention_head_dim": 128, "ffn_dim": 4096, "num_layers": 12}  # 0.2e9 weights
SMALL = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "num_layers": 6}
SIZE, FRAMES, STEPS, GUIDANCE = 256, 17, 8, 5.0
PROMPT, NEGATIVE, LENGTH = "a boat on a lake", "blurred", 64
LEVERS = {
    "guidance_interval [0, 0.5]": ("--guidance-interval", 0, "--guidance-interval", 0.5),
    "guidance_scale 1": ("--guidance-scale", 1),
    "num_inference_steps 4": ("--num-inference-steps", 4),
    "step_cache taylorseer 2": ("--step-cache", "taylorseer", "--cache-interval", 2),
}


def make_repository(folder: Path, size: dict) -> int:
    """Write a 5B repository with a larger transformer to `folder`. Returns the number of the transformer's weights."""
    import torch
    from diffusers import WanTransformer3DModel

    from tests.tiny import wan

    wan.make(folder, "5b")
    config = {**WanTransformer3DModel.load_config(folder / "transformer"), **size}
    torch.manual_seed(0)
    transformer = WanTransformer3DModel.from_config(config)
    transformer.save_pretrained(folder / "transformer")
    return sum(weight.numel() for weight in transformer.parameters())


class Peer:
    """diffusers' pipeline, loaded once."""

    def __init__(self, model: Path, image: Path):
        import torch
        from diffusers import WanImageToVideoPipeline
        from PIL import Image

        self.pipe = WanImageToVideoPipeline.from_pretrained(model, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.image = Image.open(image)

    def __call__(self) -> dict:
        start = time.perf_counter()
        self.pipe(
            image=self.image,
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            height=SIZE,
            width=SIZE,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            max_sequence_length=LENGTH,
            output_type="latent",
        )
        return {"seconds": time.perf_counter() - start}


class Ours:
    """The stage `generate` on an encoded clip, with a lever."""

    def __init__(self, folder: Path, lever: tuple = ()):
        self.folder, self.lever = folder, lever

    def __call__(self) -> dict:
        from tests.commands import events, stage

        common = ("--num-inference-steps", STEPS, "--guidance-scale", GUIDANCE, "--seed", 1, "--dtype", "float32")
        arguments = (self.folder / "encoded.safetensors", "-o", self.folder / "latents.safetensors", *common, *self.lever)
        with counted_blocks() as blocks:
            log = events(stage("generate", *arguments, "--device", "cpu", "--threads", os.cpu_count()))
        (item,) = [event for event in log if event["event"] == "item"]
        return {"seconds": item["seconds"], "blocks": blocks[0]}


def compiled(folder: str) -> list[float]:
    """Seconds of two clips of one process with compiled blocks. What the compiler makes stays in `folder`."""
    os.environ["KINEMAKE_CACHE"] = f"{folder}/cache"
    from tests.commands import events, stage_manifest

    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "dtype": "float32", "compile": "blocks"}
    rows = [
        {"encoded": f"{folder}/encoded.safetensors", "output": f"{folder}/{seed}.safetensors", "seed": seed, **options}
        for seed in (1, 2)
    ]
    log = events(stage_manifest("generate", Path(folder), rows, "--device", "cpu", "--threads", os.cpu_count()))
    return [event["seconds"] for event in log if event["event"] == "item"]


@contextmanager
def counted_blocks() -> Iterator[list[int]]:
    """Counts the blocks of Wan transformers that compute in the context, in a list of one number."""
    from diffusers.models.transformers.transformer_wan import WanAttention

    counted, forward = [0], WanAttention.forward

    def counting(attention, *arguments, **options):
        counted[0] += not attention.is_cross_attention
        return forward(attention, *arguments, **options)

    with mock.patch.object(WanAttention, "forward", counting):
        yield counted


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    import numpy as np
    import torch
    from PIL import Image

    from tests.commands import stage

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = make_repository(folder / "model", SMALL if options.quick else LARGE)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / "a.png")
        known = ("--num-frames", FRAMES, "--max-sequence-length", LENGTH, "--dtype", "float32")
        prompts = ("--prompt", PROMPT, "--negative-prompt", NEGATIVE)
        encoded = folder / "encoded.safetensors"
        stage("encode", folder / "a.png", "-o", encoded, "-m", folder / "model", *prompts, *known)
        runs = {"WanImageToVideoPipeline": Peer(folder / "model", folder / "a.png"), "generate": Ours(folder)}
        results = alternate(runs, 3)
        results |= alternate({lever: Ours(folder, words) for lever, words in LEVERS.items()}, 1)
        cold, warm = in_fresh_process("benchmarks.sampling", "compiled", name)
        cached, _ = in_fresh_process("benchmarks.sampling", "compiled", name)
    figures = {"cold": cold, "warm": warm, "cached": cached}
    results |= {f"compile blocks, {kind}": [{"seconds": figure}] for kind, figure in figures.items()}
    seconds = {run: median(found, "seconds") for run, found in results.items()}
    blocks = {run: found[0].get("blocks", "") for run, found in results.items()}
    ratio = seconds["generate"] / seconds["WanImageToVideoPipeline"]
    print(f"{weights / 1e9:.2f}e9 weights, {STEPS} steps, {SIZE}*{SIZE}, {FRAMES} frames, {os.cpu_count()} threads")
    print_table(["", "seconds per clip", "blocks"], [[run, seconds[run], blocks[run]] for run in results])
    finish(f"sampling: {ratio:.2f} (goal <= 1.0)", {"seconds": seconds, "blocks": blocks}, options.json)


if __name__ == "__main__":
    main()
