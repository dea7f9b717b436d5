"""Patch search and voting: each pixel of a frame takes its colour from the patches of the key that fit the frame best.

The method of EbSynth (Fiser et al., "StyLit", SIGGRAPH 2016; Jamriska et al., "Stylizing Video by Example", SIGGRAPH 2019)
over PatchMatch (Barnes et al., SIGGRAPH 2009), which a patent covers, see docs/fresco.md. Patches are compared by the
colours of the frames (colour), by the correspondence from the flow (position), and by the synthesised image (style). The
result is the same on any number of cores: sums are of integers, random numbers are seeded, and the order of work is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numba import njit

from stages.media.flow import Match, grid

WEIGHTS = {"style": 1.0, "colour": 6.0, "position": 2.0}  # of squared differences, each over its channels
PRECISION = 64  # scale of the integer features; squared differences of 7 x 7 patches fit in 32 bits
CHANNELS = 8


@dataclass(frozen=True)
class Search:
    """Settings of the patch search.

    `size`: side of a patch in pixels, odd, at most 7. `votes`: rounds of search and voting at each pyramid level.
    `iterations`: sweeps over the image in one search. `radius`: of the random search around the best match, in pixels.
    """

    size: int = 5
    votes: int = 3
    iterations: int = 2
    radius: int = 64


@dataclass(frozen=True, eq=False)
class Pair:
    """A source frame and its translated image, both RGB, uint8 [H, W, 3]."""

    frame: np.ndarray
    translated: np.ndarray


def synthesise(key: Pair, match: Match, where: np.ndarray, start: Pair, search: Search) -> Pair:
    """Synthesise the frame of `match`, and its translated image, from patches of the key.

    Only the pixels `where`, bool [H, W], are synthesised; the others are those of `start`. The search goes from coarse to
    fine: each level begins with the matches of the level below, the coarsest with the flow, its holes filled.
    """
    shape, radius = where.shape, search.size // 2
    places = grid(shape) + fill_holes(match.places - grid(shape), match.reliable)
    nearest: Any = None
    voted: Any = None
    for level in reversed(range(level_count(shape, search.size))):
        size = shape[1] >> level, shape[0] >> level
        frame, translated, initial = (downscale(image, size) for image in (key.frame, key.translated, start.translated))
        wanted = downscale(where.astype(np.uint8) * 255, size) > 0
        scale = np.array(size, np.float32) / np.array(shape[::-1], np.float32)
        target_places = np.clip((downscale(places, size) + 0.5) * scale - 0.5, 0, np.array(size, np.float32) - 1)
        flow = np.rint(target_places[..., ::-1]).astype(np.int32)
        around = cv2.dilate(wanted.astype(np.uint8), np.ones((search.size, search.size), np.uint8)) > 0
        nearest = flow if nearest is None else np.where(around[..., None], upscale_matches(nearest, wanted.shape), flow)
        source = features(translated, frame, grid(frame.shape), radius)
        colours, palette = downscale(match.frame, size), pad_border(translated, radius)
        pixels, voters = np.argwhere(wanted), np.argwhere(around)
        voted = initial.astype(np.float32)
        vote(palette, nearest, pixels, radius, voted)
        for number in range(search.votes):
            target = features(voted, colours, target_places, radius)
            improve(target, source, nearest, voters, search.size, search.radius, search.iterations, number + 1)
            vote(palette, nearest, pixels, radius, voted)
    source_frame = start.frame.astype(np.float32)
    vote(pad_border(key.frame, radius), nearest, pixels, radius, source_frame)
    return Pair(*(np.rint(image).astype(np.uint8) for image in (source_frame, voted)))


def level_count(shape: tuple[int, int], size: int) -> int:
    """Levels of the image pyramid: the smallest still holds two patches of `size` along its shorter side."""
    return max(1, (min(shape) // (2 * size + 1)).bit_length())


def fill_holes(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill the values, float32 [H, W, 2], that are not `known`, bool [H, W], from the known ones around them.

    The pull-push method of Gortler et al., "The Lumigraph", 1996: empty cells take the averages of coarser cells.
    """
    height, width = known.shape
    if known.all() or min(height, width) == 1:
        return values
    half = (width + 1) // 2, (height + 1) // 2
    weight = known.astype(np.float32)
    share = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    mean = cv2.resize(values * weight[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = fill_holes(mean / np.maximum(share, 1e-6)[..., None], share > 0)
    return np.where(known[..., None], values, cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))


def downscale(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image to its own or a smaller `size` (width, height); each pixel is the mean of its area."""
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def upscale_matches(nearest: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scale matches of images of half the size, int32 [H, W, 2], to `shape` (height, width)."""
    rows, columns = np.indices(shape, np.int32)
    last = np.array(nearest.shape[:2]) - 1
    coarse = nearest[np.minimum(rows // 2, last[0]), np.minimum(columns // 2, last[1])]
    return np.clip(2 * coarse + np.stack([rows % 2, columns % 2], axis=-1), 0, np.array(shape) - 1).astype(np.int32)


def pad_border(image: np.ndarray, radius: int) -> np.ndarray:
    """Repeat the edges of an image [H, W, C] by `radius` pixels on each side."""
    return np.pad(image, ((radius, radius), (radius, radius), (0, 0)), "edge")


def features(style: np.ndarray, colour: np.ndarray, places: np.ndarray, radius: int) -> np.ndarray:
    """Features by which patches are compared: int16 [H + 2 radius, (W + 2 radius) 8], with the channels of a pixel adjacent.

    The squared difference of two features is `PRECISION` times the weighted squared difference of the values. Positions are
    scaled to 0 to 255 over the longer side.
    """
    position = places * np.float32(255 / max(places.shape))
    parts = {"style": style, "colour": colour, "position": position}
    scaled = [part * np.float32(np.sqrt(WEIGHTS[name] * PRECISION / part.shape[2])) for name, part in parts.items()]
    padded = pad_border(np.rint(np.concatenate(scaled, axis=-1)).astype(np.int16), radius)
    return np.ascontiguousarray(padded).reshape(len(padded), -1)


@njit
def improve(target, source, nearest, pixels, size, radius, iterations, seed):
    """Improve the matches `nearest` (row, column in the key), int32 [H, W, 2], in place, at `pixels`, int64 [N, 2].

    PatchMatch: a sweep in raster order tries the shifted matches of the pixel's previous neighbours, then random places in
    ever smaller windows around the best match. Every other sweep runs backwards.
    """
    height, width = nearest.shape[:2]
    cost = np.empty((height, width), np.int32)
    for row, column in pixels:
        there = nearest[row, column]
        cost[row, column] = distance(target, row, column, source, there[0], there[1], size, 2**31 - 1)
    state = np.uint64(seed)
    for sweep in range(iterations):
        step = 1 - 2 * (sweep % 2)
        for number in range(len(pixels)):
            row, column = pixels[number if step > 0 else len(pixels) - 1 - number]
            best_row, best_column, best = nearest[row, column, 0], nearest[row, column, 1], cost[row, column]
            for down in range(2):
                before_row, before_column = row - step * down, column - step * (1 - down)
                if 0 <= before_row < height and 0 <= before_column < width:
                    offered_row = nearest[before_row, before_column, 0] + step * down
                    offered_column = nearest[before_row, before_column, 1] + step * (1 - down)
                    if 0 <= offered_row < height and 0 <= offered_column < width:
                        found = distance(target, row, column, source, offered_row, offered_column, size, best)
                        if found < best:
                            best_row, best_column, best = offered_row, offered_column, found
            middle_row, middle_column, window = best_row, best_column, radius
            while window >= 1:
                state = xorshift(state)
                span = np.uint64(2 * window + 1)
                offered_row = middle_row - window + np.int64((state >> np.uint64(8)) % span)
                offered_column = middle_column - window + np.int64((state >> np.uint64(34)) % span)
                if 0 <= offered_row < height and 0 <= offered_column < width:
                    found = distance(target, row, column, source, offered_row, offered_column, size, best)
                    if found < best:
                        best_row, best_column, best = offered_row, offered_column, found
                window //= 2
            nearest[row, column, 0], nearest[row, column, 1], cost[row, column] = best_row, best_column, best


@njit
def distance(target, row, column, source, source_row, source_column, size, limit):
    """Sum of squared differences of the patches around two pixels, int32; a partial sum once it reaches `limit`."""
    length = size * CHANNELS
    begin, source_begin = column * CHANNELS, source_column * CHANNELS
    total = np.int32(0)
    for line in range(size):
        one = target[row + line, begin : begin + length]
        other = source[source_row + line, source_begin : source_begin + length]
        for place in range(length):
            apart = np.int32(one[place]) - np.int32(other[place])
            total = np.int32(total + np.int32(apart * apart))
        if total >= limit:
            break
    return total


@njit
def xorshift(state):
    """The next state of a 64-bit xorshift random number generator (Marsaglia, "Xorshift RNGs", 2003)."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))


@njit
def vote(palette, nearest, pixels, radius, result):
    """Set `pixels` of `result`, float32 [H, W, 3], to the mean colour that all patches over a pixel have at its place.

    `palette`, uint8, is the image that patches come from, padded by `radius`.
    """
    height, width = nearest.shape[:2]
    for row, column in pixels:
        red = green = blue = count = 0
        for voter_row in range(max(0, row - radius), min(height, row + radius + 1)):
            for voter_column in range(max(0, column - radius), min(width, column + radius + 1)):
                colour = palette[
                    nearest[voter_row, voter_column, 0] + row - voter_row + radius,
                    nearest[voter_row, voter_column, 1] + column - voter_column + radius,
                ]
                red, green, blue, count = red + colour[0], green + colour[1], blue + colour[2], count + 1
        result[row, column, 0], result[row, column, 1], result[row, column, 2] = red / count, green / count, blue / count
