"""Turn checkpoints, as they were published, into repositories of safetensors in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import click

from stages.models.dynamicrafter.options import SIZES
from stages.runtime.cli import DEBUG, PathType, clean_errors

FILE = PathType(exists=True, dir_okay=False)
FOLDER = PathType(exists=True, file_okay=False)
OUTPUT = click.Option(["--output", "-o"], required=True, type=PathType(), help="The folder to make; it must not exist.")


@click.group(help="Turn published checkpoints into repositories that the stages load: safetensors in diffusers' layout.")
def main() -> None:
    pass


@main.command("fresco", no_args_is_help=True)
@click.option("--base", required=True, type=FOLDER, help="A Stable Diffusion 1.5 in diffusers' layout.")
@click.option("--vae", type=FOLDER, help="Another VAE, such as stabilityai/sd-vae-ft-mse.")
@click.option("--controlnet-hed", type=FOLDER, help="Such as lllyasviel/sd-controlnet-hed; needs --hed.")
@click.option("--controlnet-canny", type=FOLDER, help="Such as lllyasviel/sd-controlnet-canny.")
@click.option("--controlnet-depth", type=FOLDER, help="Such as lllyasviel/sd-controlnet-depth; needs --depth.")
@click.option("--hed", type=FILE, help="ControlNetHED.pth of lllyasviel/Annotators.")
@click.option("--depth", type=FOLDER, help="A DPT, such as Intel/dpt-hybrid-midas.")
@click.option("--raft", type=FILE, help="raft_large_C_T_SKHT_V2.pth of torchvision, for the option flow.")
@clean_errors
def fresco(
    base: Path,
    vae: Path | None,
    hed: Path | None,
    depth: Path | None,
    raft: Path | None,
    output: Path,
    debug: bool,
    **controlnets: Path | None,
) -> None:
    """Stable Diffusion, ControlNets and what makes their maps, as one repository."""
    from stages.models.fresco.convert import convert

    given = {name.removeprefix("controlnet_"): folder for name, folder in controlnets.items() if folder}
    convert(base, given, vae, hed, depth, raft, output)


@main.command("longlive", no_args_is_help=True)
@click.option("--base", required=True, type=FILE, help="longlive_base.pt.")
@click.option("--lora", type=FILE, help="lora.pt; it comes to OUTPUT/lora.safetensors.")
@click.option(
    "--ema/--no-ema",
    default=False,
    show_default=True,
    help="The averaged weights (generator_ema), or those that all published configs use (generator): without --ema "
    "these, and where one set alone is there, that.",
)
@click.option("--wan", required=True, type=FOLDER, help="A repository such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers: the rest.")
@clean_errors
def longlive(base: Path, lora: Path | None, ema: bool, wan: Path, output: Path, debug: bool) -> None:
    """LongLive's checkpoint, with the text encoder and the VAE of a Wan2.1 repository."""
    from stages.models.longlive.convert import convert

    convert(base, lora, ema, wan, output)


@main.command("dynamicrafter", no_args_is_help=True)
@click.option("--ckpt", "checkpoint", required=True, type=FILE, help="model.ckpt, or pruned .safetensors.")
@click.option("--resolution", "variant", required=True, type=click.Choice(tuple(SIZES)), help="Which model that is.")
@click.option("--clip", required=True, type=FOLDER, help="laion/CLIP-ViT-H-14-laion2B-s32B-b79K: what the file lacks.")
@clean_errors
def dynamicrafter(checkpoint: Path, variant: str, clip: Path, output: Path, debug: bool) -> None:
    """DynamiCrafter's checkpoint, with the tokenizer of a CLIP repository and, for a pruned file, its encoders."""
    from stages.models.dynamicrafter.convert import convert

    convert(checkpoint, variant, clip, output)


@main.command("wan", no_args_is_help=True)
@click.option("--ckpt-dir", "checkpoint", required=True, type=FOLDER, help="A folder such as Wan-AI/Wan2.2-TI2V-5B.")
@clean_errors
def wan(checkpoint: Path, output: Path, debug: bool) -> None:
    """A folder in Wan's own layout: Wan2.2-TI2V-5B, Wan2.2-I2V-A14B or Wan2.1-T2V."""
    from stages.models.wan.convert import convert

    convert(checkpoint, output)


for conversion in main.commands.values():
    conversion.params += [OUTPUT, DEBUG]

if __name__ == "__main__":
    main()
