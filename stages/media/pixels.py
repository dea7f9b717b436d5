"""Decoded frames made upright RGB arrays: deinterlaced, by their own matrix and range, with BT.709's colours, on white."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import av
import numpy as np
from av.filter import Graph

from stages.media.colour import HDR, PEAK, is_foreign, table, table_file
from stages.media.decoding import Decoded
from stages.media.filters import entrance, linked
from stages.media.probe import MATRICES, PRIMARIES, RANGES, TRANSFERS, Source, side_data

# swscale's fast path rounds down and takes chroma from the nearest sample: frames come out 1 to 2 levels darker.
# These flags give the formula to within its rounding.
FAST, ACCURATE = "bilinear", "bilinear+accurate_rnd+full_chroma_int+full_chroma_inp"

# Where a sample of chroma lies between those of luma, as libavcodec's decoders say; frames of PyAV do not tell.
CHROMA_ON_THE_LEFT = ("h264", "hevc", "mpeg2video", "mpeg4")
RGB = ("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr", "pal")
FFMPEG_RANGES = {"limited": "tv", "full": "pc"}
FFMPEG_MATRICES = {"bt709": "bt709", "bt601": "smpte170m", "fcc": "fcc", "smpte240m": "smpte240m", "bt2020": "bt2020nc"}

WHITE = 255  # what transparent video lies on, as transparent pictures do


def converter(source: Source, accurate: bool) -> Callable[[av.VideoFrame], np.ndarray]:
    """A function from a decoded frame to RGB, uint8 [H, W, 3]: upright, in square pixels, in BT.709's colours, on white.

    `accurate` converts by the frame's own matrix and range with interpolated chroma, else swscale's default conversion does,
    which is faster and 1 to 2 levels darker. Colours that need a table are always converted accurately.
    """
    graphs: dict[tuple, Graph] = {}

    def to_rgb(frame: av.VideoFrame) -> np.ndarray:
        tags = frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries
        kind = frame.width, frame.height, frame.format.name, *tags
        if kind not in graphs:
            graphs.clear()
            graphs[kind] = packing_graph(frame, tagged(source, frame), accurate)
        graphs[kind].push(frame)
        pixels = packed_pixels(graphs[kind].pull())
        if pixels.shape[2] == 4:
            pixels = on_white(pixels)
        if source.mirrored:
            pixels = pixels[:, ::-1]
        if source.rotation:
            pixels = np.rot90(pixels, -source.rotation // 90)
        return np.ascontiguousarray(pixels)

    return to_rgb


def tagged(source: Source, frame: av.VideoFrame) -> Source:
    """The source with the colours that a frame states, which may change on the way; with its own where that states none."""
    return replace(
        source,
        color_space=MATRICES.get(frame.colorspace, source.color_space),
        color_range=RANGES.get(frame.color_range, source.color_range),
        color_trc=TRANSFERS.get(frame.color_trc, source.color_trc),
        color_primaries=PRIMARIES.get(frame.color_primaries, source.color_primaries),
    )


def packing_graph(frame: av.VideoFrame, source: Source, accurate: bool) -> Graph:
    """Filters from frames like this one to packed RGB, or RGBA where they have alpha, of the source's stored size.

    Unlike `VideoFrame.reformat`, they use the memory of frames again that nobody holds any more.
    """
    foreign = is_foreign(source.color_trc, source.color_primaries)
    width, height = source.size[::-1] if source.rotation % 180 == 90 else source.size
    flags, chroma = ACCURATE if accurate or foreign else FAST, "left" if source.codec in CHROMA_ON_THE_LEFT else "center"
    scaling = f"{width}:{height}:flags={flags}:in_chroma_loc={chroma}:out_range=pc"
    packed = packed_format(frame, source)
    graph = Graph()
    graph.threads = 1  # swscale's own threads cost more than they save here
    filters = [entrance(graph, frame), graph.add("setparams", meaning(source)), graph.add("scale", scaling)]
    if not foreign:
        return linked(graph, *filters, graph.add("format", packed))
    peak = peak_of(frame) if source.color_trc in HDR else PEAK
    with table_file(table(source.color_trc, source.color_primaries, peak)) as name:
        planar = graph.add("format", "gbrap16" if packed == "rgba" else "gbrp16")
        mapping = graph.add("lut3d", f"file={name}:interp=tetrahedral")
        return linked(graph, *filters, planar, mapping, graph.add("format", packed))


def meaning(source: Source) -> str:
    """What the numbers of a frame are taken for, whatever it says itself: the colours are left to the table."""
    matrix = "gbr" if source.pix_fmt.startswith(RGB) else FFMPEG_MATRICES[source.color_space or usual_matrix(source)]
    return f"range={FFMPEG_RANGES.get(source.color_range, 'auto')}:colorspace={matrix}:color_primaries=bt709:color_trc=bt709"


def peak_of(frame: av.VideoFrame) -> float:
    """The brightest light of an HDR frame in cd/m2, by its content's light level, or by the display it was graded on."""
    beside = side_data(frame)
    if (level := beside.get("CONTENT_LIGHT_LEVEL")) is not None:
        if peak := int(np.frombuffer(level, np.uint32, 1)[0]):
            return float(peak)
    if (display := beside.get("MASTERING_DISPLAY_METADATA")) is not None:
        numbers = np.frombuffer(display, np.int32)  # AVMasteringDisplayMetadata: of 10 fractions the last, and two flags
        if numbers[21] and numbers[19] and numbers[18] > 0:
            return float(numbers[18] / numbers[19])
    return PEAK


def packed_format(frame: av.VideoFrame, source: Source) -> str:
    """The packed format that keeps what a frame has."""
    alpha = any(component.is_alpha for component in frame.format.components)
    if frame.format.name == "pal8":
        alpha = source.codec == "png"
    elif source.codec == "rawvideo" and source.container == "avi":
        alpha = False  # the fourth byte of its pixels means nothing
    return "rgba" if alpha else "rgb24"


def packed_pixels(frame: av.VideoFrame) -> np.ndarray:
    """The pixels of a packed frame, uint8 [h, w, C], in the frame's own memory."""
    plane, channels = frame.planes[0], 4 if frame.format.name == "rgba" else 3
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width * channels]
    return rows.reshape(frame.height, frame.width, channels)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """RGB of straight RGBA, uint8 [h, w, 4], as it looks on white."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return rgba[..., :3]
    return ((rgba[..., :3] * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)


def usual_matrix(source: Source) -> str:
    """What players assume of an untagged picture: BT.709 from high definition on, else BT.601."""
    return "bt709" if source.height >= 720 or source.width >= 1280 else "bt601"


def deinterlaced(stream: Iterator[tuple[object, Decoded]]) -> Iterator[tuple[object, Decoded]]:
    """Frames of a decoder, each beside something else; from the first interlaced one on, through ffmpeg's bwdif.

    As many frames come out as went in. Those that are not interlaced pass as they are.
    """
    graph, shape, waiting = None, None, deque()

    def finished() -> Iterator[tuple[object, Decoded]]:
        try:
            while True:
                frame = graph.pull()
                beside, one = waiting.popleft()
                yield beside, Decoded(one.index, one.tick, frame)
        except (av.BlockingIOError, av.EOFError):
            return

    for beside, one in stream:
        frame = one.frame
        if graph is None and not frame.interlaced_frame:
            yield beside, one
            continue
        if shape != (frame.width, frame.height, frame.format.name):
            if graph:
                graph.push(None)
                yield from finished()
            shape = frame.width, frame.height, frame.format.name
            graph = Graph()
            linked(graph, entrance(graph, frame), graph.add("bwdif", "mode=send_frame:deint=interlaced"))
        graph.push(frame)
        waiting.append((beside, one))
        yield from finished()
    if graph:
        graph.push(None)
        yield from finished()
