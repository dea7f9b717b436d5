"""Patch search and vote: each pixel of a frame takes its colour from those patches of the key that fit the frame best.

The method of EbSynth (Fiser et al., "StyLit", SIGGRAPH 2016; Jamriska et al., "Stylizing Video by Example", SIGGRAPH 2019)
over PatchMatch (Barnes et al., SIGGRAPH 2009), which a patent covers, see docs/fresco.md. Two patches are compared by what
the frames show (colour), by where the flow says that the one is seen in the other (position), and by the picture that is
being made (style). Sums are of integers, chance is seeded, and there is one order of work, whatever the number of cores.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from stages.media.flow import Match, grid

WEIGHTS = {"style": 1.0, "colour": 6.0, "position": 2.0}  # of squared differences, each over its channels
PRECISION = 64  # features are whole numbers; 7 x 7 patches of their squares, times this, still fit in 32 bits
CHANNELS = 8


@dataclass(frozen=True)
class Search:
    """How patches are searched: `size` is their side in pixels, odd, at most 7; `votes` is how often, at each size of the
    picture, patches are searched and then vote on the colours; `iterations` are sweeps over the picture in one search;
    `radius` is how far from its best match so far a pixel looks, in pixels.
    """

    size: int = 5
    votes: int = 3
    iterations: int = 2
    radius: int = 64


@dataclass(frozen=True, eq=False)
class Pair:
    """A frame as it was filmed and as it was translated, both RGB, uint8 [H, W, 3]."""

    frame: np.ndarray
    picture: np.ndarray


def synthesise(key: Pair, match: Match, where: np.ndarray, start: Pair, search: Search) -> Pair:
    """The frame of `match` made of patches of the key, as filmed and as translated.

    Only pixels of `where`, bool [H, W], are made; the others are those of `start`. From coarse to fine: each size of the
    picture begins with what was found at half of it, the coarsest with the flow, its holes filled.
    """
    shape, radius = where.shape, search.size // 2
    places = grid(shape) + fill_holes(match.places - grid(shape), match.trusted)
    nearest, voted = None, None
    for level in reversed(range(level_count(shape, search.size))):
        size = shape[1] >> level, shape[0] >> level
        frame, picture, begun = (resized(image, size) for image in (key.frame, key.picture, start.picture))
        wanted = resized(where.astype(np.uint8) * 255, size) > 0
        scale = np.float32(size) / np.float32(shape[::-1])
        target_places = np.clip((resized(places, size) + 0.5) * scale - 0.5, 0, np.float32(size) - 1)
        flow = np.rint(target_places[..., ::-1]).astype(np.int32)
        around = cv2.dilate(wanted.astype(np.uint8), np.ones((search.size, search.size), np.uint8)) > 0
        nearest = flow if nearest is None else np.where(around[..., None], doubled(nearest, wanted.shape), flow)
        source = features(picture, frame, grid(frame.shape), radius)
        colours, palette = resized(match.frame, size), bordered(picture, radius)
        pixels, voters = np.argwhere(wanted), np.argwhere(around)
        voted = begun.astype(np.float32)
        vote(palette, nearest, pixels, radius, voted)
        for number in range(search.votes):
            target = features(voted, colours, target_places, radius)
            improve(target, source, nearest, voters, search.size, search.radius, search.iterations, number + 1)
            vote(palette, nearest, pixels, radius, voted)
    filmed = start.frame.astype(np.float32)
    vote(bordered(key.frame, radius), nearest, pixels, radius, filmed)
    return Pair(*(np.rint(image).astype(np.uint8) for image in (filmed, voted)))


def level_count(shape: tuple[int, int], size: int) -> int:
    """How often a picture of `shape` can be halved, itself counted, and still hold two patches of `size` a side."""
    return max(1, (min(shape) // (2 * size + 1)).bit_length())


def fill_holes(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`values`, float32 [H, W, 2], with those that are not `known`, bool [H, W], blended from the known ones around.

    By averages of ever coarser cells, as far as cells are empty (the pull-push of Gortler et al., "The Lumigraph", 1996).
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


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` at a `size` (width, height) that is its own or smaller, each pixel the mean of what it covers."""
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def doubled(nearest: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Matches found in pictures of half the size, int32 [H, W, 2], brought to `shape` (height, width)."""
    rows, columns = np.indices(shape, np.int32)
    last = np.array(nearest.shape[:2]) - 1
    coarse = nearest[np.minimum(rows // 2, last[0]), np.minimum(columns // 2, last[1])]
    return np.clip(2 * coarse + np.stack([rows % 2, columns % 2], axis=-1), 0, np.array(shape) - 1).astype(np.int32)


def bordered(image: np.ndarray, radius: int) -> np.ndarray:
    return np.pad(image, ((radius, radius), (radius, radius), (0, 0)), "edge")


def features(style: np.ndarray, colour: np.ndarray, places: np.ndarray, radius: int) -> np.ndarray:
    """What patches are compared by: int16 [H + 2 radius, (W + 2 radius) 8], the channels of a pixel side by side.

    A squared difference of two features is `PRECISION` times the weighted one of the values; positions count as 0 to 255
    over the longer side.
    """
    position = places * np.float32(255 / max(places.shape))
    parts = {"style": style, "colour": colour, "position": position}
    scaled = [part * np.float32(np.sqrt(WEIGHTS[name] * PRECISION / part.shape[2])) for name, part in parts.items()]
    whole = bordered(np.rint(np.concatenate(scaled, axis=-1)).astype(np.int16), radius)
    return np.ascontiguousarray(whole).reshape(len(whole), -1)


@njit
def improve(target, source, nearest, pixels, size, radius, iterations, seed):
    """Better `nearest` (row, column in the key), int32 [H, W, 2], in place, for `pixels`, int64 [N, 2], in raster order.

    PatchMatch: a sweep offers each pixel the match of its neighbours before it, moved along, then places at random in
    ever smaller windows around the best; every other sweep runs backwards.
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
                state = shuffled(state)
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
    """Sum of squared differences of the patches around two pixels, int32; once that reaches `limit`, what it is so far."""
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
def shuffled(state):
    """The next of a row of 64-bit numbers without pattern (Marsaglia, "Xorshift RNGs", 2003)."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))


@njit
def vote(palette, nearest, pixels, radius, result):
    """Set `pixels` of `result`, float32 [H, W, 3], to the mean of what all patches over a pixel have in its place.

    `palette`, uint8, is the picture that patches are taken from, with a border of `radius`.
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
