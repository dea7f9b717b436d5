"""The shipped LongLive as its authors would publish it: their two checkpoints, and a Wan2.1 repository for the rest."""

import shutil
from pathlib import Path

from tests.tiny.wan_original import originals, transformer_names

SHIPPED = Path(__file__).parents[2] / "models/shapes-longlive"
CONVERT = {
    "base": "hub://us/longlive/models/longlive_base.pt",
    "lora": "hub://us/longlive/models/lora.pt",
    "wan": "hub://us/wan",
}


def longlive(folder: Path) -> dict[str, Path]:
    """Write the repositories of CONVERT below `folder`, and return them by id. The LoRA changes nothing: its B is zero."""
    import torch
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(SHIPPED / "transformer")
    weights = originals(model, transformer_names(model.config.num_layers))
    (folder / "longlive/models").mkdir(parents=True)
    base = {"generator": {f"model.{name}": weight for name, weight in weights.items()}, "step": 1}
    torch.save(base, folder / "longlive/models/longlive_base.pt")
    rows, columns = weights["blocks.0.self_attn.q.weight"].shape
    lora = {"A.weight": torch.ones(2, columns), "B.weight": torch.zeros(rows, 2)}
    lora = {f"base_model.model.blocks.0.self_attn.q.lora_{name}": weight for name, weight in lora.items()}
    torch.save({"generator_lora": lora}, folder / "longlive/models/lora.pt")
    shutil.copytree(SHIPPED, folder / "wan", ignore=shutil.ignore_patterns("README.md", "kinemake.json"))
    return {"us/longlive": folder / "longlive", "us/wan": folder / "wan"}
