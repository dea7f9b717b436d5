"""The option of every family that starts from noise."""

import secrets

from stages.runtime.options import Option

SEED = Option(
    "seed",
    int,
    lambda variant, values: secrets.randbelow(2**31),
    "Seed of the noise",
    ("generate",),
    minimum=0,
    maximum=2**63 - 4096,
    default_text="drawn at random, and kept",
)
