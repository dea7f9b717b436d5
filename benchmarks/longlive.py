"""Does a block cost the same however long the film is? A causal Wan with its cache, and the same model without one.

CPU seconds of a block (its denoising passes and the clean one) with a fixed window: the last blocks of a film of 300 latent
frames over those at 30, from the first full window on. The limit is 1. The table also has the cost of a block without a
cache, where each denoising pass computes all frames so far. Then the peak memory at both lengths, each in a process of its
own: of the blocks, and of decode, compared with the decoder of diffusers, which decodes a film at once.

    python -m benchmarks.longlive [--quick] [--json FILE]
"""

import resource
import statistics
import time

import torch
from diffusers import WanTransformer3DModel

from benchmarks.harness import ROOT, finish, in_fresh_process, parse_arguments, print_table
from stages.families.longlive.cache import Cache
from stages.families.longlive.causal import CausalWan
from stages.families.longlive.sampler import NUM_TRAIN_TIMESTEPS, Schedule, denoise, update_cache
from stages.families.shared.pixels import to_uint8
from stages.families.shared.wan.vae import decode_video, load_vae
from stages.runtime.model import Model

MODEL = ROOT / "models/shapes-longlive"
BLOCK, WINDOW, SINK, SHORT, LONG = 3, 12, 3, 30, 300
COMPARED = 6  # blocks at each end: from the first full window on to SHORT
SCHEDULE = Schedule.of((1000, 750, 500, 250), shift=5.0, warp=True, context_noise=0.0)


def start() -> tuple[CausalWan, torch.Tensor, torch.Tensor]:
    """The model, a prompt's embeddings, and the noise of a block."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformer = WanTransformer3DModel.from_pretrained(MODEL, subfolder="transformer", dtype=torch.float32).eval()
    noise = torch.randn(len(SCHEDULE.sigmas), 1, transformer.config.in_channels, BLOCK, 16, 16)
    return CausalWan(transformer), torch.randn(1, 24, transformer.config.text_dim), noise


@torch.no_grad()
def run_cached(frames: int) -> dict:
    """CPU seconds of each block of a film, and the peak memory of the process in bytes."""
    model, text, (first, *fresh) = start()
    cache, seconds = Cache(WINDOW, SINK), []
    for begin in range(0, frames, BLOCK):
        before = time.process_time()
        clean = denoise(model, cache, first, fresh, text, SCHEDULE, begin)
        update_cache(model, cache, clean, text, SCHEDULE, begin)
        seconds.append(time.process_time() - before)
    return {"seconds": seconds, "peak": peak()}


@torch.no_grad()
def run_uncached(frames: int) -> dict:
    """CPU seconds of the last block of a film if each pass computes the whole film."""
    model, text, noise = start()
    film = noise[0].repeat(1, 1, frames // BLOCK, 1, 1)
    before = time.process_time()
    for sigma in SCHEDULE.sigmas:
        cache = Cache(frames, 0)
        model(film, NUM_TRAIN_TIMESTEPS * sigma, text, cache, 0, cache.block_slots(0, frames))
    return {"seconds": time.process_time() - before}


@torch.no_grad()
def decode(frames: int, at_once: bool) -> dict:
    """The peak memory in bytes of a process that decodes latents."""
    torch.set_num_threads(1)
    vae = load_vae(Model("shapes-longlive", "longlive", path=str(MODEL)), tiling=False, device="cpu")
    z = torch.randn(1, vae.config.z_dim, frames, 16, 16, generator=torch.manual_seed(0))
    for frame in vae.decode(z, return_dict=False)[0][0].unbind(1) if at_once else decode_video(vae, z):
        to_uint8(frame)
    return {"peak": peak()}


def peak() -> int:
    """The peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    options = parse_arguments(__doc__.splitlines()[0])
    repeats, lengths = (1, (30, 60)) if options.quick else (5, (30, 60, 120, 300))
    films = [in_fresh_process("benchmarks.longlive", "run_cached", LONG) for _ in range(repeats)]
    short = in_fresh_process("benchmarks.longlive", "run_cached", SHORT)
    full = WINDOW // BLOCK
    early = statistics.median(s for film in films for s in film["seconds"][full : full + COMPARED])
    late = statistics.median(s for film in films for s in film["seconds"][-COMPARED:])
    memory = statistics.median(film["peak"] for film in films) / short["peak"]
    rows = []
    for length in lengths:
        ours = statistics.median(s for film in films for s in film["seconds"][length // BLOCK - COMPARED : length // BLOCK])
        theirs = in_fresh_process("benchmarks.longlive", "run_uncached", length)["seconds"]
        rows.append([length, 1000 * ours, 1000 * theirs, theirs / ours])
    peaks = {
        (length, at_once): in_fresh_process("benchmarks.longlive", "decode", length, at_once)["peak"]
        for length in (SHORT, LONG)
        for at_once in (False, True)
    }
    decode_memory = peaks[LONG, False] / peaks[SHORT, False]
    print_table(["latent frames", "cached, ms per block", "no cache, ms per block", "times ours"], rows)
    print_table(
        ["latent frames", "decode, MB at most", "the library's, MB at most"],
        [[length, *(f"{peaks[length, at_once] / 1e6:.0f}" for at_once in (False, True))] for length in (SHORT, LONG)],
    )
    line = (
        f"longlive: {late / early:.2f} times the CPU seconds per block at {LONG} latent frames (goal <= 1.1) and "
        f"{memory:.2f} times the memory (goal <= 1.1), {decode_memory:.2f} in decode, against {SHORT}"
    )
    figures = {"films": films, "short": short, "rows": rows, "decode_memory": decode_memory}
    finish(line, figures, options.json)


if __name__ == "__main__":
    main()
