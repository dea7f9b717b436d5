"""Conversion for FRESCO: Stable Diffusion 1.5, ControlNets and the networks of their control maps, as one repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stages.families.fresco.control import HED, background_class
from stages.families.fresco.options import CONTROLS, ConvertOptions, converted_settings
from stages.families.fresco.raft import RAFT
from stages.families.shared.convert import check_shapes, link, new_repository, read_pickle, rename_weights, save
from stages.families.shared.loading import quiet
from stages.families.shared.model_index import read_config
from stages.runtime.errors import UsageError, one_line
from stages.runtime.model import write_settings

COUNTER = "num_batches_tracked"
TABLE = "position_ids"  # a buffer of numbers that old versions of transformers saved
PICKLES = {  # the libraries' names of a component's weights, and those of the same in safetensors
    "diffusion_pytorch_model.bin": "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin": "model.safetensors",
}
PARTS = ("text_encoder", "tokenizer", "unet", "scheduler", "model_index.json")


def convert(options: ConvertOptions, output: Path) -> None:
    """Write a repository to `output`: `base` (with `vae` instead of its own, if given), the ControlNets, the weights of
    `hed` and `raft`, the DPT in `depth`, and the network in `saliency`.

    Linked where possible; weights that are there as pickles alone are written as safetensors. Raises UsageError for missing
    or unsuitable files; nothing is at `output` then.
    """
    nets = {control: folder for control in CONTROLS if (folder := getattr(options, f"controlnet_{control}"))}
    if not nets:
        raise UsageError("no ControlNet is given", "add --controlnet-hed, --controlnet-canny or --controlnet-depth")
    for control, maps, flag in (
        ("hed", options.hed, "--hed ControlNetHED.pth"),
        ("depth", options.depth, "--depth FOLDER of a DPT"),
    ):
        if control in nets and not maps:
            raise UsageError(f"a ControlNet for {control} is given without the network for its maps", f"add {flag}")
    base = Path(options.base)
    folders = {**{part: base / part for part in PARTS}, "vae": Path(options.vae or base / "vae")}
    folders |= {f"controlnet_{control}": Path(folder) for control, folder in nets.items()}
    folders |= {part: Path(source) for part in ("depth", "saliency") if (source := getattr(options, part))}
    with new_repository(output) as folder:
        if options.checkpoint:
            networks = read_checkpoint(Path(options.checkpoint), base)
            for part in networks.keys() - ({"vae"} if options.vae else set()):
                del folders[part]
                save(networks[part], folder / part)
        for part, source in folders.items():
            if part == "saliency":
                check_labels(source)
            add_part(source, folder / part)
        for name, net, path in (("hed", HED, options.hed), ("raft", RAFT, options.raft)):
            if path:
                (folder / name).mkdir()
                save_file(read_published(Path(path), net), folder / name / f"{name}.safetensors")
        write_settings(folder, {"family": "fresco", **converted_settings(options.values())})


def read_checkpoint(path: Path, base: Path) -> dict[str, Any]:
    """The networks of a Stable Diffusion checkpoint in a single file, by component; their configs are those of `base`.

    Raises UsageError for a file that cannot be read or is of another architecture.
    """
    quiet()
    from diffusers import StableDiffusionPipeline

    unused = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    try:
        pipeline = StableDiffusionPipeline.from_single_file(str(path), config=str(base), local_files_only=True, **unused)
        networks = {part: getattr(pipeline, part) for part in ("unet", "text_encoder", "vae")}
        missing = [name for network in networks.values() for name, weight in network.named_parameters() if weight.is_meta]
        if missing:
            raise ValueError(f"it lacks {missing[0]}")
    except Exception as error:  # the library raises any class for a file of another kind
        raise UsageError(
            f"{path} cannot be read as a checkpoint of Stable Diffusion 1.5 ({one_line(error)})",
            "give --checkpoint a whole .safetensors or .ckpt file, and --base a repository of Stable Diffusion 1.5",
        ) from error
    return networks


def add_part(source: Path, target: Path) -> None:
    """Link a file or a component's folder to `target`. Weights in a pickle alone are written there as safetensors.

    Raises UsageError for a missing file or folder, and for a network without weights.
    """
    if not source.exists():
        raise UsageError(f"{source} is missing", "give complete repositories in diffusers' layout")
    if not (source / "config.json").is_file() or any(source.glob("*.safetensors")):
        return link(source, target)
    pickle = next((source / name for name in PICKLES if (source / name).is_file()), None)
    if pickle is None:
        raise UsageError(f"{source} has no weights", f"fetch it with {' or '.join(PICKLES.values())}")
    for path in source.glob("*.json"):
        link(path, target / path.name)
    found = read_pickle(pickle)
    weights = (
        {name: weight for name, weight in found.items() if not name.endswith(TABLE)} if isinstance(found, Mapping) else {}
    )
    save_file(rename_weights(weights, str, pickle), target / PICKLES[pickle.name], metadata={"format": "pt"})


def check_labels(source: Path) -> None:
    """Raise UsageError for a segmentation network without a class background."""
    labels = read_config(source).get("id2label")
    if not isinstance(labels, Mapping) or background_class(labels) is None:
        raise UsageError(f"the network in {source} has no class background", "give --saliency another one")


def read_published(path: Path, net: type[nn.Module]) -> dict[str, torch.Tensor]:
    """The weights of a network in its published file (a pickle) or in safetensors.

    The counters of batch norms are left out: inference does not read them. Raises UsageError for weights that do not fit.
    """
    found = load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    if isinstance(found, Mapping):
        found = {name: weight for name, weight in found.items() if not name.endswith(COUNTER)}
    weights = rename_weights(found, str, path)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in net().state_dict().items() if not name.endswith(COUNTER)}
    check_shapes(shapes, weights, path)
    return weights
