"""CPU seconds per caption of `caption_vlm` in batches against one by one, on a random InternVL of 26e6 weights.

The stage describes images of noise, with 32 tokens each, on one thread. Runs alternate; loading is among the seconds.

    python -m benchmarks.captions [--quick] [--json FILE]
"""

import tempfile
import time
from pathlib import Path

from benchmarks.harness import alternate, finish, median, parse_arguments, print_table

VISION = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
TEXT = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
CLIPS, TOKENS, BATCH = 8, 32, 8


def make_model(folder: Path) -> None:
    """Write a model of random weights whose texts do not end before their maximal length."""
    import torch

    from stages.families.vlm import build
    from tests.tiny.tokenizer import byte_tokenizer
    from tests.tiny.vlm import unreadable_tokens

    torch.manual_seed(0)
    tokenizer = build.chat_tokenizer(byte_tokenizer(build.SPECIAL))
    vision = {**VISION, "image_size": [224, 224], "patch_size": [14, 14]}
    text = {**TEXT, "model_type": "qwen3", "intermediate_size": 1536, "max_position_embeddings": 4096}
    model = build.build(tokenizer, vision, text)
    model.generation_config.suppress_tokens = unreadable_tokens(tokenizer)
    build.save(folder, model, tokenizer)


class Captions:
    """The stage on all images, in batches."""

    def __init__(self, folder: Path, images: list[Path], batch_size: int):
        self.folder, self.images, self.batch_size = folder, images, batch_size

    def __call__(self) -> dict:
        from tests.commands import stage_manifest

        options = {"model": str(self.folder / "model"), "max_new_tokens": TOKENS, "caption_batch_size": self.batch_size}
        rows = [{"video": str(path), "output": f"{path}.json", "dtype": "float32", **options} for path in self.images]
        start = time.process_time()
        stage_manifest("caption_vlm", self.folder, rows)
        return {"seconds": (time.process_time() - start) / len(rows)}


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        images = [folder / f"{number}.png" for number in range(CLIPS)]
        for number, path in enumerate(images):
            noise = np.random.default_rng(number).integers(0, 256, (224, 224, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        runs = {f"caption_batch_size {size}": Captions(folder, images, size) for size in (1, BATCH)}
        results = alternate(runs, 1 if options.quick else 3)
    seconds = {run: median(found, "seconds") for run, found in results.items()}
    alone, together = seconds.values()
    print_table(["", "CPU seconds per caption"], [[run, figure] for run, figure in seconds.items()])
    finish(f"captions: {alone / together:.2f} times as fast (goal >= 1.5)", {"seconds": seconds}, options.json)


if __name__ == "__main__":
    main()
