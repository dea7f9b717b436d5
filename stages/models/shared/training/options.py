"""Options that every training has. Their defaults are those of the text-to-video program that `train` takes over."""

from dataclasses import replace
from typing import Any

from stages.runtime.options import DTYPES, Option

STAGE = ("train",)
SHAPES = "shapes"  # the name under which shapes world is asked for in the place of a folder

SHARED = (
    Option(
        "data",
        str,
        "",
        f"Folder with videos/ and captions/ of the same stems, or {SHAPES}: clips of shapes world",
        STAGE,
        is_path=True,
    ),
    Option(
        "max_samples",
        int,
        0,
        "Use so many clips at most; 0: all of a folder, 100000 of shapes world",
        STAGE,
        minimum=0,
        maximum=10**9,
    ),
    Option(
        "skip_bad_clips",
        bool,
        False,
        "Leave out the clips of a folder that cannot be trained on, each with a line in the log; else they are an error",
        STAGE,
    ),
    Option(
        "inside_share", float, 0.0, "Part of shapes world's clips whose border cuts no shape", STAGE, minimum=0, maximum=1
    ),
    Option(
        "looks",
        int,
        0,
        "So many colours, shapes and grounds of shapes world in all; 0: every one",
        STAGE,
        minimum=0,
        maximum=5000,
    ),
    Option("only", str, "", "Words that the captions of shapes world's clips all have, such as 'ring black'", STAGE),
    Option("validation_share", float, 0.05, "Part of a folder's clips kept for validation", STAGE, minimum=0, maximum=0.5),
    Option(
        "num_frames",
        int,
        16,
        "Frames of a training clip, spread evenly over the video",
        STAGE,
        "frames",
        minimum=1,
        maximum=4096,
    ),
    Option("frame_size", int, 64, "Side of a training clip, cut to a square", STAGE, "pixels", minimum=16, maximum=4096),
    Option("augment", bool, True, "Vary a folder's clips a little: crop, brightness, contrast", STAGE),
    Option("batch_size", int, 4, "Clips per step and process", STAGE, "clips", minimum=1, maximum=4096),
    Option("gradient_accumulation", int, 1, "Batches per step", STAGE, minimum=1, maximum=10**4),
    Option("learning_rate", float, 1e-4, "Highest learning rate", STAGE, minimum=0, maximum=1),
    Option(
        "schedule", str, "cosine", "Course of the learning rate after the warm-up", STAGE, choices=("cosine", "constant")
    ),
    Option("warmup_steps", int, 100, "Steps in which the learning rate rises", STAGE, minimum=0, maximum=10**8),
    Option("weight_decay", float, 0.01, "Weight decay of AdamW", STAGE, minimum=0, maximum=100),
    Option("max_grad_norm", float, 1.0, "Gradients are cut to this norm", STAGE, minimum=0, maximum=10**9),
    Option("num_epochs", int, 1000, "How often all clips are gone through", STAGE, minimum=1, maximum=10**7),
    Option("max_steps", int, 0, "Steps at most; 0: by num_epochs", STAGE, minimum=0, maximum=10**8),
    Option("mixed_precision", str, "no", "Precision of the forward pass", STAGE, choices=("no", "fp16", "bf16")),
    Option(
        "ema_decay",
        float,
        0.999,
        "Decay of the averaged weights, which are the ones that are kept",
        STAGE,
        maximum=1,
        minimum=0,
    ),
    Option("seed", int, 0, "Seed of the first weights, the order, the noise", STAGE, minimum=0, maximum=2**63 - 4096),
    Option("num_workers", int, 0, "Processes that read clips ahead; 0: none", STAGE, minimum=0, maximum=256),
    Option(
        "validate_every",
        int,
        500,
        "Validate, and write a sample strip, after so many steps",
        STAGE,
        minimum=1,
        maximum=10**8,
    ),
    Option(
        "validation_samples",
        int,
        64,
        "Clips that the validation loss is taken over, at most",
        STAGE,
        minimum=1,
        maximum=10**6,
    ),
    Option("save_every", int, 500, "Save the state of the training after so many steps", STAGE, minimum=1, maximum=10**8),
    Option("save_dtype", str, "float32", "Precision in which the finished model is written", STAGE, choices=DTYPES),
    Option("start_from", str, "", "Folder of a model to start from", STAGE, is_path=True),
    Option("wandb", bool, False, "Also log to Weights & Biases (WANDB_MODE=offline works)", STAGE),
)


def shared(without: tuple[str, ...] = (), **defaults: Any) -> tuple[Option, ...]:
    """The options that every training has, some with a training's own default, but those that mean nothing to it."""
    kept = (o for o in SHARED if o.name not in without)
    return tuple(replace(o, default=defaults[o.name]) if o.name in defaults else o for o in kept)
