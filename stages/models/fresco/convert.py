"""What a translation needs, brought together in one repository: Stable Diffusion 1.5, ControlNets, what makes their maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stages.models.fresco.control import HED
from stages.models.fresco.raft import RAFT
from stages.models.shared.convert import check, link, new_repository, read_pickle, renamed
from stages.runtime.errors import UsageError
from stages.runtime.model import write_settings

COUNTER = "num_batches_tracked"
PARTS = ("text_encoder", "tokenizer", "unet", "scheduler", "model_index.json")


def convert(
    base: Path,
    controlnets: Mapping[str, Path],
    vae: Path | None,
    hed: Path | None,
    depth: Path | None,
    raft: Path | None,
    output: Path,
) -> None:
    """Write a repository to `output`: `base` with another VAE if one is given, `controlnets` by what they are shown, the
    weights of the annotator `hed` and those of `raft`, and the folder of a DPT, `depth`.

    Raises UsageError for files that are not what they should be; then there is nothing at `output`.
    """
    if not controlnets:
        raise UsageError("no ControlNet is given", "add --controlnet-hed, --controlnet-canny or --controlnet-depth")
    for control, net, option in (("hed", hed, "--hed ControlNetHED.pth"), ("depth", depth, "--depth FOLDER of a DPT")):
        if control in controlnets and net is None:
            raise UsageError(f"a ControlNet for {control} is given and nothing makes its maps", f"add {option}")
    vae = vae or base / "vae"
    folders = {**{part: base / part for part in PARTS}, "vae": vae}
    folders |= {f"controlnet_{control}": folder for control, folder in controlnets.items()}
    folders |= {"depth": depth} if depth else {}
    with new_repository(output) as folder:
        for part, source in folders.items():
            check_part(part, source)
            link(source, folder / part)
        for name, net, path in (("hed", HED, hed), ("raft", RAFT, raft)):
            if path:
                (folder / name).mkdir()
                save_file(published(path, net), folder / name / f"{name}.safetensors")
        chosen = {} if "hed" in controlnets else {"controlnet_type": next(iter(controlnets))}
        write_settings(folder, {"family": "fresco", "options": chosen})


def check_part(part: str, source: Path) -> None:
    """Raise UsageError for what is not there, or has its weights in no safetensors file."""
    if not source.exists():
        raise UsageError(f"{source} is missing", "give repositories in diffusers' layout, whole")
    if (source / "config.json").is_file() and not any(source.glob("*.safetensors")):
        raise UsageError(f"{source} has no .safetensors file", f"fetch {part} with its weights in that format")


def published(path: Path, net: type[nn.Module]) -> dict[str, torch.Tensor]:
    """The weights of a network in the file in which it was published, or in safetensors.

    How often a batch norm was trained is left out, which says nothing to a network that is only run.
    """
    found = load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    if isinstance(found, Mapping):
        found = {name: weight for name, weight in found.items() if not name.endswith(COUNTER)}
    weights = renamed(found, str, path)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in net().state_dict().items() if not name.endswith(COUNTER)}
    check(shapes, weights, path)
    return weights
