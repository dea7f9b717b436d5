"""Loading of published weights: float32 files against their repacked copy, and the merge of a LoRA on all threads.

The weights are random, a Wan transformer in float32 that is used in bfloat16. Each load is in a fresh process with the files
in the kernel's cache, and reads every weight once, as the copy to a GPU does. The limit is a copy of bytes from memory.

    python -m benchmarks.loading [--quick] [--json FILE]
"""

import os
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.harness import alternate, finish, in_fresh_process, median, parse_arguments, print_table

CONFIG = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "text_dim": 4096,
    "in_channels": 16,
    "out_channels": 16,
}
LAYERS, QUICK_LAYERS = 8, 2
RANK = 64


def make(folder: str, layers: int) -> dict:
    """Write a transformer with random weights in float32 to `folder`, and a LoRA for the layers of its blocks.

    Returns the number of the transformer's parameters, and of those that the LoRA changes.
    """
    import torch
    from diffusers import WanTransformer3DModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**CONFIG, num_layers=layers)
    transformer.save_pretrained(f"{folder}/transformer", max_shard_size="500MB")
    linear = {name: one for name, one in transformer.blocks.named_modules() if isinstance(one, torch.nn.Linear)}
    pairs = {}
    for name, one in linear.items():
        pairs[f"blocks.{name}.lora_A.weight"] = torch.randn(RANK, one.in_features) / RANK
        pairs[f"blocks.{name}.lora_B.weight"] = torch.randn(one.out_features, RANK) / RANK
    save_file(pairs, f"{folder}/lora.safetensors")
    parameters = sum(weight.numel() for weight in transformer.parameters())
    return {"parameters": parameters, "merged": sum(one.weight.numel() for one in linear.values())}


def load_transformer(folder: str, repacked: bool):
    """The transformer in bfloat16, from its repacked copy or from the published files."""
    import torch
    from diffusers import WanTransformer3DModel

    from stages.families.shared import loading
    from stages.families.shared import repacked as copies

    loading.quiet()
    loading.log = lambda event, **facts: None
    copies.SMALLEST = 0 if repacked else 2**62
    return loading.load_network(WanTransformer3DModel, Path(folder), "transformer", dtype=torch.bfloat16)


def measure(folder: str, repacked: bool) -> dict:
    """Wall and CPU seconds of a load, and by how many bytes the peak of resident and the end of own memory grow."""
    import diffusers.models.transformers.transformer_wan  # noqa: F401, the import is not measured

    from stages.families.shared import loading  # noqa: F401

    peak, own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, own_memory()
    start, cpu = time.monotonic(), time.process_time()
    transformer = load_transformer(folder, repacked)
    for weight in transformer.parameters():
        weight.detach().clone()
    return {
        "seconds": time.monotonic() - start,
        "cpu": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak,
        "own": own_memory() - own,
    }


def own_memory() -> int:
    """Bytes of resident memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def compare(folder: str) -> dict:
    """Whether the weights of both loads have the same names, precisions and bits."""
    import torch

    ours, published = (load_transformer(folder, repacked).state_dict() for repacked in (True, False))
    equal = ours.keys() == published.keys() and all(
        ours[name].dtype == weight.dtype and torch.equal(ours[name], weight) for name, weight in published.items()
    )
    return {"equal": equal}


def merge(folder: str, threads: int) -> dict:
    """Wall and CPU seconds of the merge of the LoRA in float32 on the CPU."""
    import torch

    from stages.families.shared.wan import lora

    transformer = load_transformer(folder, repacked=True)
    for weight in transformer.parameters():
        weight.data = weight.data.clone()  # the file is read before, not during the merge
    torch.set_num_threads(threads)
    start, cpu = time.monotonic(), time.process_time()
    lora.merge(transformer, [lora.Lora(Path(folder, "lora.safetensors"))])
    return {"seconds": time.monotonic() - start, "cpu": time.process_time() - cpu}


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    repeats, layers = (1, QUICK_LAYERS) if options.quick else (3, LAYERS)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KINEMAKE_CACHE"] = f"{folder}/cache"
        made = in_fresh_process("benchmarks.loading", "make", folder, layers)
        equal = in_fresh_process("benchmarks.loading", "compare", folder)["equal"]  # makes the copy
        loads = alternate(
            {
                name: lambda repacked=repacked: in_fresh_process("benchmarks.loading", "measure", folder, repacked)
                for name, repacked in (("float32", False), ("repacked", True))
            },
            repeats,
        )
        merges = alternate(
            {
                str(threads): lambda threads=threads: in_fresh_process("benchmarks.loading", "merge", folder, threads)
                for threads in sorted({1, cores})
            },
            repeats,
        )
    print(f"{made['parameters'] / 1e9:.2f}e9 weights; loaded weights equal bit for bit: {'yes' if equal else 'NO'}")
    gigabytes = 1e-9
    rows = [
        [
            name,
            *(median(runs, key) for key in ("seconds", "cpu")),
            *(median(runs, key) * gigabytes for key in ("peak", "own")),
        ]
        for name, runs in loads.items()
    ]
    print_table(["weights", "s", "CPU s", "peak GB", "own GB"], rows)
    rows = [
        [threads, *(median(runs, key) * 1e9 / made["merged"] for key in ("seconds", "cpu"))]
        for threads, runs in merges.items()
    ]
    print(f"LoRA of rank {RANK}, per 1e9 weights that it changes:")
    print_table(["threads", "s", "CPU s"], rows)
    ratio = median(loads["repacked"], "seconds") / median(loads["float32"], "seconds")
    line = f"loading: {ratio:.2f} (goal <= 0.5){'' if equal else ', WEIGHTS DIFFER'}"
    finish(line, {**made, "equal": equal, "loads": loads, "merges": merges, "ratio": ratio}, options.json)


if __name__ == "__main__":
    main()
