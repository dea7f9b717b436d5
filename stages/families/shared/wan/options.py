"""Options shared by the families that use Wan's classes."""

from collections.abc import Mapping
from typing import Any

from stages.families.shared.training.options import TrainingOptions
from stages.runtime.errors import UsageError
from stages.runtime.options import DTYPE, DTYPES, Implementation, Options, option
from stages.runtime.sizes import parse_size


class TextLengthOption(Options):
    max_sequence_length: int = option(
        512, "Maximum length of a prompt; the rest is cut off", unit="tokens", minimum=1, maximum=512
    )


class DtypeOption(Options):
    dtype: str = option(
        "bfloat16",
        "Precision of the transformer and the text encoder; the VAE always runs in float32",
        choices=DTYPES,
        reloads=True,
    )


class VaeTilingOption(Options):
    vae_tiling: bool = option(False, "Run the VAE in tiles: needs less memory, leaves slight seams", reloads=True)


class LoraOptions(Options):
    lora: list[str] = option(
        [],
        "LoRA weights (safetensors files) for the transformer; all are merged into it",
        reloads=True,
        is_file=True,
    )
    lora_scale: list[float] = option(
        [1.0],
        "Strengths of the files in lora, in their order, or one for all of them",
        reloads=True,
        minimum=-100,
        maximum=100,
        widened=True,
    )


def check_loras(values: Mapping[str, Any], suffix: str = "") -> None:
    """Raise UsageError if lora and lora_scale, with a suffix to their names, have different numbers of values."""
    files, scales = values[f"lora{suffix}"], values[f"lora_scale{suffix}"]
    if files and len(scales) not in (1, len(files)):
        raise UsageError(
            f"lora_scale{suffix} has {len(scales)} values and lora{suffix} {len(files)}",
            "give a strength for each file, or one for all",
        )


class LatentOptions(TrainingOptions):
    """Options of a training on the latents of a frozen VAE, which encodes each clip once."""

    max_sequence_length: int = option(
        512, "Maximum length of a caption; the rest is cut off", unit="tokens", minimum=1, maximum=512
    )

    @property
    def vae_source(self) -> str:
        """Folder of the repository with the VAE."""
        return self.start_from

    @property
    def trains_text_encoder(self) -> bool:
        return False


class LatentTrainingOptions(LatentOptions):
    """Options of a training of a whole model on latents."""

    vae: str = option("", "Folder with a VAE that train wan-vae wrote; empty: the VAE of start_from", is_path=True)
    freeze_text_encoder: bool = option(False, "Do not train the text encoder of start_from")

    @property
    def vae_source(self) -> str:
        return self.vae or self.start_from

    @property
    def trains_text_encoder(self) -> bool:
        return not (self.start_from and self.freeze_text_encoder)


TEXTS = 2 * 512 * 4096 * 2  # bytes of the embeddings of two prompts


def disk(size: str, frames: int) -> float:
    """Estimated bytes of a clip's files: a byte per pixel and frame, half for latents and condition, half for H.264."""
    width, height = parse_size(size)
    return TEXTS + width * height * frames


def encode_by_wan(worker: str, options: type[Options]) -> Implementation:
    """An `encode` by the UMT5 and the VAE of Wan, which are in memory one after the other."""
    return Implementation(
        worker=worker,
        options=options,
        weights=("model_index.json", "tokenizer/*", "text_encoder/*", "vae/*"),
        in_memory=({"text_encoder": DTYPE}, {"vae": "float32"}),
        on_out_of_memory={"vae_tiling": True},
    )


def decode_by_wan(worker: str, options: type[Options]) -> Implementation:
    """A `decode` by the VAE of Wan."""
    return Implementation(
        worker=worker,
        options=options,
        weights=("vae/*",),
        in_memory=({"vae": "float32"},),
        on_out_of_memory={"vae_tiling": True},
    )
