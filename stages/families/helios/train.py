"""Training of a transformer of Helios: flow matching on a window of a film, with the windows before it as its past.

Each window is encoded on its own, as chunks are decoded. A window without a past stands for text to video; one whose past is
a still film of the frame before it, for image to video. The past gets noise, so that the model learns not to amplify the
errors of the latents that it made itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import HeliosScheduler, HeliosTransformer3DModel, WanTransformer3DModel

from stages.families.helios.history import Past, latest, predict
from stages.families.helios.options import HeliosTrainingOptions
from stages.families.helios.sampler import Prediction, denoise, shift_exponent, tokens_of
from stages.families.shared.loading import load_network
from stages.families.shared.model_index import read_index, write_index
from stages.families.shared.training.data import ShapesDataset, WithSecondPrompt, datasets
from stages.families.shared.training.encoded import EncodedDataset
from stages.families.shared.training.loop import in_dtype
from stages.families.shared.training.text import drop_texts
from stages.families.shared.wan.training import LatentTask
from stages.media.shapes import world

SAMPLE_CLIPS = 3  # clips in a sample strip
WINDOWS = 3  # in a clip
TURNING = 0.4  # share of the clips of shapes world whose shape changes its direction at the start of a window
PREFIX, PREFIX_SHARE = "continue video", 0.2  # recipe chain puts this before captions
SCHEDULE = {"stages": 1, "use_dynamic_shifting": True}
MEMORY = {"patch_short": 1, "patch_mid": 2, "patch_long": 4}  # factor of the patch, by the name of the layer


class HeliosTask(LatentTask):
    """Squared error of the velocity of a window, at sigmas drawn from a shifted logit-normal distribution."""

    options: HeliosTrainingOptions

    def __init__(self, options: HeliosTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__(options, architecture)
        self.transformer = self._transformer(architecture)
        clips = replace(options, num_frames=WINDOWS * options.num_frames)
        self.data = tuple(  # type: ignore[assignment]  # of two
            EncodedDataset(WithSecondPrompt(part, switch=WINDOWS), self.encode, options.batch_size)
            for part in datasets(clips, partial(TurningFilms, window=options.num_frames))
        )

    def _transformer(self, architecture: Mapping[str, Any]) -> HeliosTransformer3DModel:
        """The transformer of start_from, which may be one of Wan, or a new one."""
        if not self.options.start_from:
            channels = self.vae.config.z_dim
            size = {"in_channels": channels, "out_channels": channels, "text_dim": self.text.config.d_model}
            return HeliosTransformer3DModel(**size, **architecture["transformer"])
        start = Path(self.options.start_from)
        if read_index(start)["transformer"][1] == "HeliosTransformer3DModel":
            return load_network(HeliosTransformer3DModel, start, "transformer", dtype=torch.float32)
        return of_wan(load_network(WanTransformer3DModel, start, "transformer", dtype=torch.float32))

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents` [B, W, C, F, h, w] of W windows, and `still`, of still films of the last frames of all but the last."""
        windows = video.chunk(WINDOWS, dim=2)
        still = [window[:, :, -1:].repeat(1, 1, window.shape[2], 1, 1) for window in windows[:-1]]
        return {
            name: torch.stack([super(HeliosTask, self).encode(film)["latents"] for film in films], dim=1)
            for name, films in (("latents", windows), ("still", still))
        }

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        options, latents = self.options, batch["latents"]
        count = len(latents)
        draw = torch.rand(6, count, generator=generator)
        later = torch.randint(1, WINDOWS, (count,), generator=generator)
        index = torch.where(draw[5] < options.text_share, 0, later)  # the window that is predicted
        switch = torch.tensor(batch["switch"])
        texts = [batch["text2" if turned else "text"][i] for i, turned in enumerate((index >= switch).tolist())]
        texts = drop_texts(texts, (draw[0] < options.text_dropout) & (index != switch))  # only the text tells of a turn
        prefixed = (draw[1] < PREFIX_SHARE).tolist()
        texts = [f"{PREFIX} {text}".strip() if add else text for text, add in zip(texts, prefixed, strict=True)]
        pasts = [
            self.past(latents[i], batch["still"][i], n, bool(draw[2, i] < options.first_frame_share), bool(draw[3, i] < 0.5))
            for i, n in enumerate(index.tolist())
        ]
        past = Past(*(torch.stack(parts) for parts in zip(*pasts, strict=True)))
        past = self.with_noise(past, draw[4] < options.noise_share, generator)

        window = latents[torch.arange(count), index]
        sigma = torch.sigmoid(torch.randn(count, generator=generator))
        shift = options.training_shift * math.exp(shift_exponent(tokens_of(window)))
        sigma = (shift * sigma / (1 + (shift - 1) * sigma)).to(latents)
        velocity = torch.randn(window.shape, generator=generator).to(latents) - window
        noisy = window + sigma.view(-1, 1, 1, 1, 1) * velocity
        prediction = predict(self.transformer, noisy, 1000 * sigma, self.embed(texts), past, options.history_sizes)
        return ((prediction - velocity) ** 2).mean()

    def past(self, latents: torch.Tensor, still: torch.Tensor, n: int, from_frame: bool, whole: bool) -> Past:
        """What lies before window n of a clip, [C, 1, h, w] and [C, N, h, w]: nothing, a frame, or windows.

        `whole` takes all windows before it, else only the one before it, as if the film began there.
        """
        length = sum(self.options.history_sizes)
        if n == 0:
            empty = torch.zeros_like(latents[0])
            return Past(empty[:, :1], latest([empty[None]], length)[0])
        if from_frame:
            return Past(still[n - 1, :, :1], latest([still[None, n - 1, :, -1:]], length)[0])
        windows = [*latents[0 if whole else n - 1 : n]]
        return Past(windows[0][:, :1], latest([window[None] for window in windows], length)[0])

    def with_noise(self, past: Past, which: torch.Tensor, generator: torch.Generator) -> Past:
        """Add noise to the latents of the pasts where `which`, bool [B], is true. What is empty stays so."""
        noisy = []
        for part in past:
            count, _, length, *_ = part.shape
            strength = self.options.history_noise * torch.rand(count, 1, length, 1, 1, generator=generator)
            strength = strength.to(part) * which.view(-1, 1, 1, 1, 1).to(part) * part.any(dim=(1, 3, 4), keepdim=True)
            noise = torch.randn(part.shape, generator=generator).to(part)
            noisy.append((1 - strength) * part + strength * noise)
        return Past(*noisy)

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per clip: its last window, and what the model makes of the windows before it without a prompt."""
        transformer = in_dtype(self.transformer, torch.float32).to(batch["latents"].device).eval()
        scheduler, text = HeliosScheduler(**SCHEDULE), self.embed([""])
        rows = []
        for i in range(min(SAMPLE_CLIPS, len(batch["text"]))):
            true = batch["latents"][i, -1][None]
            past = Past(
                *(part[None] for part in self.past(batch["latents"][i], batch["still"][i], WINDOWS - 1, False, True))
            )
            noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(i)).to(true)
            model = Prediction(transformer, torch.float32, past, text, None, self.options.history_sizes)
            made = denoise(model, scheduler, noise, self.options.sample_steps, guidance_scale=1.0)
            rows += [(batch["text2"][i], self.pixels(true)), ("continued", self.pixels(made))]
        return rows

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a complete repository in diffusers' layout, as of Helios-Base."""
        self.save_around(folder, dtype)
        in_dtype(self.transformer, dtype).save_pretrained(folder / "transformer")
        HeliosScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
        parts = {
            "scheduler": ["diffusers", "HeliosScheduler"],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
            "transformer": ["diffusers", "HeliosTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
        }
        write_index(folder, "HeliosPipeline", parts)


def of_wan(wan: WanTransformer3DModel) -> HeliosTransformer3DModel:
    """A transformer of Helios with the weights of one of Wan, which it equals where there is no past.

    The layers that read the past begin as the mean of the patches that they cover.
    """
    shared = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim", "freq_dim", "ffn_dim")
    rope = (wan.rope.t_dim, wan.rope.h_dim, wan.rope.w_dim)
    own = {name: wan.config[name] for name in (*shared, "num_layers", "patch_size", "cross_attn_norm", "eps")}
    helios = HeliosTransformer3DModel(**own, rope_dim=rope)
    weights = dict(wan.state_dict())
    weights["norm_out.scale_shift_table"] = weights.pop("scale_shift_table")
    for name, factor in MEMORY.items():
        kernel = weights["patch_embedding.weight"].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        weights[f"{name}.weight"] = kernel.repeat_interleave(factor, 4) / factor**3
        weights[f"{name}.bias"] = weights["patch_embedding.bias"]
    helios.load_state_dict(weights)
    return helios


class TurningFilms(ShapesDataset):
    """Clips of shapes world of several windows, of which a share turns at the start of a window.

    An item also holds `switch`, the window at which the shape turns (WINDOWS: at none), and `text2`, the caption from there
    on; `text` is the caption before it.
    """

    def __init__(self, *args: Any, window: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.window = window

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        scene, side = self.scene(index, rng), self.frame_size
        turns = rng.random() < TURNING
        switch = int(rng.integers(1, WINDOWS)) if turns else WINDOWS
        turn = switch * self.window - 1  # last frame of the first scene
        direction = list(world.DIRECTIONS)[rng.integers(len(world.DIRECTIONS))] if turns else scene.direction
        onward = world.turn(scene, direction, turn, side, side)
        frames = [world.render(scene, turn + 1, side, side)]
        if turns:
            frames.append(world.render(onward, self.num_frames - turn - 1, side, side, start=1))
        return {
            "frames": np.concatenate(frames),
            "text": scene.caption(),
            "text2": onward.caption(),
            "switch": switch,
        }
