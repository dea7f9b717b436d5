"""What a translation needs, brought together in one repository: Stable Diffusion 1.5, ControlNets, what makes their maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.models.fresco.control import HED
from stages.models.shared.convert import check, link, new_repository, read_pickle, renamed
from stages.runtime.errors import UsageError

PARTS = ("text_encoder", "tokenizer", "unet", "scheduler", "model_index.json")


def convert(
    base: Path,
    controlnets: Mapping[str, Path],
    vae: Path | None,
    hed: Path | None,
    depth: Path | None,
    output: Path,
) -> None:
    """Write a repository to `output`: `base` with another VAE if one is given, `controlnets` by what they are shown, the
    weights of the annotator `hed` and the folder of a DPT, `depth`.

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
        if hed:
            (folder / "hed").mkdir()
            save_file(annotator(hed), folder / "hed/hed.safetensors")


def check_part(part: str, source: Path) -> None:
    """Raise UsageError for what is not there, or has its weights in no safetensors file."""
    if not source.exists():
        raise UsageError(f"{source} is missing", "give repositories in diffusers' layout, whole")
    if (source / "config.json").is_file() and not any(source.glob("*.safetensors")):
        raise UsageError(f"{source} has no .safetensors file", f"fetch {part} with its weights in that format")


def annotator(path: Path) -> dict[str, torch.Tensor]:
    """The weights of ControlNet's annotator for soft edges, as it was published or in safetensors."""
    weights = load_file(path) if path.suffix == ".safetensors" else renamed(read_pickle(path), str, path)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in HED().state_dict().items()}
    check(shapes, weights, path)
    return weights
