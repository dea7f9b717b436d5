"""Options shared by the families that use Wan's classes."""

from stages.families.shared.training.options import TrainingOptions
from stages.runtime.options import DTYPES, Options, option
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


class LatentTrainingOptions(TrainingOptions):
    """Options of a training on the latents of a frozen VAE, which encodes each clip once."""

    vae: str = option("", "Folder with a VAE that train wan-vae wrote; empty: the VAE of start_from", is_path=True)
    freeze_text_encoder: bool = option(False, "Do not train the text encoder of start_from")
    max_sequence_length: int = option(
        512, "Maximum length of a caption; the rest is cut off", unit="tokens", minimum=1, maximum=512
    )


TEXTS = 2 * 512 * 4096 * 2  # bytes of the embeddings of two prompts


def disk(size: str, frames: int) -> float:
    """Estimated bytes of a clip's files: a byte per pixel and frame, half for latents and condition, half for H.264."""
    width, height = parse_size(size)
    return TEXTS + width * height * frames
