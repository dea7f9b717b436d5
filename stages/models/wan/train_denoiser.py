"""Training of a Wan denoiser (`WanTransformer3DModel`) and its text encoder on clips with captions.

Flow matching (Lipman et al. 2022, arXiv:2210.02747) on the latents of a trained VAE: x_s = (1 - s) x + s n, the model
predicts the velocity n - x. As in Wan2.2, variant 5b has the first frame in the place of the noise, with timestep 0 for its
tokens, in a part of the batch (the rest is text to video); variant 14b has it as further channels, and two experts, one for
sigmas above the boundary and one for those below.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from stages.media.shapes.world import WORDS
from stages.models.shared.training.data import datasets
from stages.models.shared.training.loop import Task, in_dtype
from stages.models.shared.words import word_tokenizer
from stages.models.wan.repository import write_index
from stages.models.wan.sampler import Condition, State, concatenated, denoise, imposed, make_scheduler, replaced, switch_step
from stages.models.wan.train_vae import check_size
from stages.models.wan.vae import decoded, denormalised, pixels
from stages.runtime.errors import UsageError

PAD, END, UNKNOWN = SPECIAL = ("<pad>", "</s>", "<unk>")
OPEN_GATES = 0.6  # of the residual branches at the start; torch's own values keep them almost closed
SPREAD = 1.2  # of the logit-normal distribution of the sigmas


class DenoiserTask(Task):
    """The velocity's squared error, at sigmas drawn from a shifted logit-normal distribution."""

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__()
        self.options, self.two_experts = options, options["variant"] == "14b"
        vae = options["vae"] or options["start_from"]
        if not (Path(vae) / "vae").is_dir():
            raise UsageError(f"{vae or 'no folder'} has no vae/", "give --vae, a folder that train wan-vae wrote")
        self.vae = AutoencoderKLWan.from_pretrained(vae, subfolder="vae", dtype=torch.float32)
        self.vae.requires_grad_(False).eval()
        check_size(options, self.vae, patch=2)
        if self.two_experts and options["batch_size"] < 2:
            raise UsageError(
                "batch_size is 1 and each expert of the 14b is trained on a half", "give --batch-size 2 or more"
            )
        if options["start_from"]:
            start = Path(options["start_from"])
            self.tokenizer = AutoTokenizer.from_pretrained(start / "tokenizer")
            self.text = UMT5EncoderModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
            self.experts = nn.ModuleList(self._experts_from(start))
        else:
            self.tokenizer, self.text = new_text_encoder(architecture["text_encoder"])
            self.experts = nn.ModuleList(self._new_expert(architecture["transformer"]) for _ in self._expert_names())
        self.text.requires_grad_(not (options["start_from"] and options["freeze_text_encoder"]))
        self.data = tuple(Encoded(clips, self.vae, self.two_experts, options["batch_size"]) for clips in datasets(options))

    def _expert_names(self) -> tuple[str, ...]:
        return ("transformer", "transformer_2") if self.two_experts else ("transformer",)

    def _new_expert(self, config: Mapping[str, Any]) -> WanTransformer3DModel:
        channels = self.vae.config.z_dim
        condition = 4 + channels if self.two_experts else 0
        expert = WanTransformer3DModel(
            **{
                "in_channels": channels + condition,
                "out_channels": channels,
                "text_dim": self.text.config.d_model,
                **config,
            }
        )
        with torch.no_grad():
            for block in expert.blocks:
                block.scale_shift_table[:, [2, 5]] = OPEN_GATES
            expert.proj_out.weight.zero_()
            expert.proj_out.bias.zero_()
        return expert

    def _experts_from(self, start: Path) -> list[WanTransformer3DModel]:
        """The experts of a repository; of one with a single transformer both start as it, blind to the condition."""
        experts = []
        for name in self._expert_names():
            source = name if (start / name).is_dir() else "transformer"
            old = WanTransformer3DModel.from_pretrained(start, subfolder=source, dtype=torch.float32)
            new = self._new_expert({k: v for k, v in old.config.items() if k[0] != "_" and k != "in_channels"})
            weights = old.state_dict()
            wide = torch.zeros_like(new.patch_embedding.weight)
            wide[:, : old.config.in_channels] = weights["patch_embedding.weight"]
            new.load_state_dict({**weights, "patch_embedding.weight": wide})
            experts.append(new)
        return experts

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]  # [B, C, T, h, w], normalised
        count = len(latents)
        draw = torch.rand(3, count, generator=generator)
        text = self.embed(self._prompts(batch["text"], *draw[[0, 2]].tolist()))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        sigma = self._sigmas(count, generator).to(latents)
        velocity = noise - latents
        noisy = latents + sigma.view(-1, 1, 1, 1, 1) * velocity
        if not self.two_experts:
            known = torch.zeros_like(latents[:, :1])  # [B, 1, T, h, w], 1 where the first frame is given
            known[:, :, 0] = (draw[1] < self.options["first_frame_share"]).view(-1, 1, 1, 1).to(latents)
            noisy = known * latents + (1 - known) * noisy
            time = (1 - known[:, 0, :, ::2, ::2]).flatten(1) * (1000 * sigma)[:, None]  # [B, tokens]
            error = (1 - known) * (self.experts[0](noisy, time, text, return_dict=False)[0] - velocity) ** 2
            return error.sum() / ((1 - known).sum() * latents.shape[1])
        hidden = torch.cat([noisy, batch["known"], batch["image"]], dim=1)
        half, loss = count // 2, 0.0
        for expert, part in zip(self.experts, (slice(half), slice(half, count)), strict=True):
            if part.stop == 0:  # a single clip, the rest of the validation's: the low-noise expert alone
                continue
            made = expert(hidden[part], 1000 * sigma[part], text[part], return_dict=False)[0]
            loss = loss + ((made - velocity[part]) ** 2).mean() / (2 if half else 1)
        return loss

    def _prompts(self, captions: list[str], drop: list[float], extend: list[float]) -> list[str]:
        """Captions, some left out, some with the prefix that recipe chain puts before them, as the numbers (0 to 1) say."""
        prefix, share = self.options["prefix"], self.options["prefix_share"]
        texts = [f"{prefix} {text}" if number < share else text for text, number in zip(captions, extend, strict=True)]
        return ["" if number < self.options["text_dropout"] else text for text, number in zip(texts, drop, strict=True)]

    def _sigmas(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Sigmas [count]; of two experts the first half are those of the high-noise one."""
        even = torch.sigmoid(SPREAD * torch.randn(count, generator=generator))
        if self.two_experts:  # each within its range, evenly: there are too few steps in either to prefer some
            boundary, half = self.options["boundary_ratio"], count // 2
            even = torch.rand(count, generator=generator)
            return torch.cat([boundary + (1 - boundary) * even[:half], boundary * even[half:]])
        shift = self.options["training_shift"]
        return shift * even / (1 + (shift - 1) * even)

    def embed(self, texts: list[str]) -> torch.Tensor:
        """Embeddings [B, L, D]; the rows behind a text's end are zero, as Wan has it."""
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.options["max_sequence_length"],
            truncation=True,
            return_tensors="pt",
        ).to(self.text.device)
        states = self.text(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states * tokens.attention_mask[..., None]

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per caption the true clip and the one made from its first frame; of the 5b also the one made from text alone."""
        rows = []
        for i, caption in enumerate(batch["text"][:3]):
            rows.append((caption, self._pixels(batch["latents"][i : i + 1])))
            rows.append(("from its first frame", self._pixels(self.generate(batch, i, first_frame=True))))
            if not self.two_experts:
                rows.append(("from the text", self._pixels(self.generate(batch, i, first_frame=False))))
        return rows

    def generate(self, batch: Mapping[str, Any], i: int, first_frame: bool) -> torch.Tensor:
        """Latents [1, C, T, h, w] by the sampler that the stage uses, without guidance."""
        steps, device, true = self.options["sample_steps"], batch["latents"].device, batch["latents"][i : i + 1]
        config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        scheduler = make_scheduler(config, steps, self.options["sample_shift"], device)
        if self.two_experts:
            image, known, join = batch["image"][i : i + 1], batch["known"][i : i + 1], concatenated
        else:
            image, join = true[:, :, :1], replaced
            known = torch.zeros_like(true[:, :1])
            known[:, :, 0] = float(first_frame)
        condition = Condition(image, known, self.embed(batch["text"][i : i + 1]), None)
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(i)).to(device)
        state, end = State(0, noise), steps
        for expert, last in zip(self.experts, self._last_steps(scheduler, end), strict=True):
            state = denoise(expert, state, scheduler, last, condition, join, 1.0, torch.float32)
        return state.x if self.two_experts else imposed(state.x, condition)

    def _last_steps(self, scheduler, steps: int) -> tuple[int, ...]:
        if not self.two_experts:
            return (steps,)
        return switch_step(scheduler, self.options["boundary_ratio"]), steps

    def _pixels(self, latents: torch.Tensor) -> np.ndarray:
        return np.stack([pixels(frame) for frame in decoded(self.vae, denormalised(self.vae, latents))])

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a whole repository in diffusers' layout; the VAE is copied as it is."""
        source = Path(self.options["vae"] or self.options["start_from"])
        shutil.copytree(source / "vae", folder / "vae")
        for name, expert in zip(self._expert_names(), self.experts, strict=True):
            in_dtype(expert, dtype).save_pretrained(folder / name)
        in_dtype(self.text, dtype).save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.options["sample_shift"]
        ).save_pretrained(folder / "scheduler")
        write_index(folder, self.options["variant"], self.options["boundary_ratio"])


class Encoded(torch.utils.data.Dataset):
    """Clips as normalised latents, each encoded once, at its first use; so of an augmented clip there is one variation.

    An item has `latents` [C, T, h, w], `text` and `name`; for the 14b also what it is told, `image` [C, T, h, w] and `known`
    [4, T, h, w]. `together` neighbours are encoded at once, which is faster: always the same ones, or rounding would make a
    resumed training another one.
    """

    def __init__(self, clips, vae: AutoencoderKLWan, with_image: bool, together: int):
        self.clips, self.vae, self.with_image = clips, [vae], with_image  # in a list: not a part of this
        self.together, self.known = together, {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        if index not in self.known:
            first = index - index % self.together
            items = [self.clips[i] for i in range(first, min(first + self.together, len(self)))]
            self.known |= dict(enumerate(self._encoded(items), first))
        return self.known[index]

    @torch.no_grad()
    def _encoded(self, items: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        video = torch.stack([item["video"] for item in items]).to(self.vae[0].device)
        found = {"latents": self._latents(video)}
        if self.with_image:
            grey = torch.cat([video[:, :, :1], torch.zeros_like(video[:, :, 1:])], dim=2)
            found["image"] = self._latents(grey)
            found["known"] = torch.zeros(len(items), 4, *found["latents"].shape[2:])
            found["known"][:, :, 0] = 1
        for i, item in enumerate(items):
            yield {name: tensor[i] for name, tensor in found.items()} | {"text": item["text"], "name": item["name"]}

    def _latents(self, video: torch.Tensor) -> torch.Tensor:
        vae = self.vae[0]
        mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        return ((vae.encode(video).latent_dist.mode() - mean.to(video)) / std.to(video)).cpu()


def new_text_encoder(config: Mapping[str, Any]) -> tuple[PreTrainedTokenizerFast, UMT5EncoderModel]:
    """A tokenizer of the words of shapes world, and an encoder of random weights."""
    words = word_tokenizer([*WORDS, "continue", "video", ".", ","], SPECIAL, UNKNOWN, end=END)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    full = UMT5Config(
        vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0, **config
    )
    return tokenizer, UMT5EncoderModel(full)
