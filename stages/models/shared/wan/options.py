"""Options that the families on Wan's classes have in common."""

from stages.models.shared.training.options import STAGE
from stages.runtime.options import DTYPES, Option
from stages.runtime.size import parse_size

TEXT_LENGTH = Option("max_sequence_length", int, 512, "Length of the text", ("encode",), "tokens", minimum=1, maximum=512)
DTYPE = Option(
    "dtype",
    str,
    "bfloat16",
    "Precision of the transformer and the text encoder; the VAE always runs in float32",
    ("encode", "generate"),
    choices=DTYPES,
    reloads=True,
)
VAE_TILING = Option(
    "vae_tiling", bool, False, "Run the VAE in tiles: less memory, slight seams", ("encode", "decode"), reloads=True
)
ON_LATENTS = (  # of trainings on the latents of a VAE
    Option("vae", str, "", "Folder that train wan-vae wrote; empty: that of start_from", STAGE, is_path=True),
    Option("freeze_text_encoder", bool, False, "Leave the text encoder of start_from as it is", STAGE),
    Option("max_sequence_length", int, 512, "Length of the text", STAGE, "tokens", minimum=1, maximum=512),
)
TEXTS = 2 * 512 * 4096 * 2  # bytes of two prompts, embedded


def disk(size: str, frames: int) -> float:
    """Bytes of a clip's files, about: a byte per pixel of its frames, half for latents and condition, half for H.264."""
    width, height = parse_size(size)
    return TEXTS + width * height * frames
