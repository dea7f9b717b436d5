"""Options that every training has. Their defaults are those of the text-to-video program that `train` replaces."""

from typing import Any

from stages.runtime.options import DTYPES, Options, option

DTYPE_OF_PRECISION = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by mixed_precision
SHAPES = "shapes"  # the value of option data that stands for shapes world


class TrainingOptions(Options):
    """Options of every training."""

    data: str = option(
        "",
        f"Folder with videos/ and captions/ of the same stems, or {SHAPES}: clips of shapes world",
        aliases=("data_dir",),
        is_path=True,
    )
    dataset: str = option(
        "", "Class of the clips of a folder, as module:Class: a subclass of TextVideoDataset in the working folder"
    )
    max_samples: int = option(
        0, "Limit of the number of clips; 0: all clips of a folder, 100000 of shapes world", minimum=0, maximum=10**9
    )
    skip_bad_clips: bool = option(
        False,
        "Leave out clips that cannot be trained on, each with a line in the log; without it they are an error",
    )
    inside_share: float = option(
        0.0, "Share of the clips of shapes world in which the border cuts no shape", minimum=0, maximum=1
    )
    looks: int = option(
        0, "Limit of distinct looks in shapes world (colour, shape, background); 0: all", minimum=0, maximum=5000
    )
    only: str = option("", "Words that all captions of shapes world contain, such as 'ring black'")
    validation_share: float = option(
        0.05, "Share of a folder's clips that is held out for validation", minimum=0, maximum=0.5
    )
    num_frames: int = option(
        16, "Frames of a training clip, spread evenly over the video", unit="frames", minimum=1, maximum=4096
    )
    frame_size: int = option(64, "Side of a training clip, cut to a square", unit="pixels", minimum=16, maximum=4096)
    augment: bool = option(True, "Augment the clips of a folder slightly: crop, brightness, contrast")
    batch_size: int = option(4, "Clips per batch and process", unit="clips", minimum=1, maximum=4096)
    gradient_accumulation: int = option(1, "Batches per step of the optimizer", minimum=1, maximum=10**4)
    learning_rate: float = option(1e-4, "Highest learning rate", minimum=0, maximum=1)
    schedule: str = option("cosine", "Schedule of the learning rate after the warm-up", choices=("cosine", "constant"))
    warmup_steps: int = option(100, "Steps of linear warm-up of the learning rate", minimum=0, maximum=10**8)
    weight_decay: float = option(0.01, "Weight decay of AdamW", minimum=0, maximum=100)
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm", minimum=0, maximum=10**9)
    num_epochs: int = option(1000, "Number of epochs", minimum=1, maximum=10**7)
    max_steps: int = option(0, "Limit of the number of steps; 0: num_epochs decides", minimum=0, maximum=10**8)
    mixed_precision: str = option("no", "Precision of the forward pass", choices=("no", "fp16", "bf16"))
    ema_decay: float = option(
        0.999, "Decay of the averaged weights (EMA), which are the weights that are saved", maximum=1, minimum=0
    )
    seed: int = option(
        0, "Seed of the initial weights, the order of the clips and the noise", minimum=0, maximum=2**63 - 4096
    )
    validate_every: int = option(500, "Validate and write a sample strip every N steps", minimum=1, maximum=10**8)
    validation_samples: int = option(64, "Limit of the number of validation clips", minimum=1, maximum=10**6)
    save_every: int = option(500, "Save the state of the training every N steps", minimum=1, maximum=10**8)
    save_dtype: str = option("float32", "Precision of the saved model", choices=DTYPES)
    start_from: str = option("", "Folder of a model to start from", is_path=True)
    wandb: bool = option(False, "Also log to Weights & Biases (WANDB_MODE=offline works)")

    @property
    def size(self) -> str:
        """Size of a training clip, in the form of option size of the stages."""
        return f"{self.frame_size}*{self.frame_size}"

    def settings(self) -> dict[str, Any]:
        """The settings of the trained model, the content of kinemake.json; empty if it is no complete model."""
        own = self.own_settings()
        return {"dtype": DTYPE_OF_PRECISION[self.mixed_precision], **own} if own else {}

    def own_settings(self) -> dict[str, Any]:
        """What a training adds to the settings: family, variant, sizes and options."""
        return {}


class FolderTrainingOptions(TrainingOptions):
    """Options of a training that reads its clips for every step."""

    num_workers: int = option(0, "Processes that read clips ahead; 0: none", minimum=0, maximum=256)


class CaptionTrainingOptions(TrainingOptions):
    """Options of a training with captions that the model is to follow by classifier-free guidance."""

    text_dropout: float = option(
        0.1, "Share of the captions replaced by an empty text, for classifier-free guidance", minimum=0, maximum=1
    )


class GuidedSampleOptions(Options):
    """How a training draws its sample strips by DDIM."""

    sample_steps: int = option(20, "DDIM steps of the sample strips", minimum=1, maximum=1000)
    sample_guidance: float = option(2.0, "Scale of classifier-free guidance in the sample strips", minimum=0, maximum=100)


class VaeTrainingOptions(FolderTrainingOptions):
    """Options of every training of a VAE, see vae.py."""

    latent_noise: float = option(
        0.05, "Standard deviation of the noise on the latents, which makes the decoder robust", minimum=0, maximum=10
    )
    kl_weight: float = option(
        1e-4, "Weight of the squared latents in the loss, which keeps them small", minimum=0, maximum=1000
    )
    foreground_weight: float = option(
        6.0, "Extra weight in the loss of pixels that differ from the background", minimum=0, maximum=1000
    )
    crop_size: int = option(
        32,
        "Side of the square crops around the foreground that a share of the steps trains on",
        unit="pixels",
        minimum=16,
        maximum=4096,
    )
    crop_share: float = option(0.65, "Share of the steps that train on square crops of crop_size", minimum=0, maximum=1)
    freeze_encoder: bool = option(False, "Train the decoder alone, so that the latents of start_from stay the same")
