"""Conversion of decoded frames to RGB arrays: deinterlaced, upright, in BT.709's colours, on white."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import av
import numpy as np
from av.filter import Graph

from stages.media.colour import HDR, PEAK, needs_conversion, table, table_file
from stages.media.decoding import Decoded, Decoder
from stages.media.filters import buffer_source, link_filters
from stages.media.probe import MATRICES, PRIMARIES, RANGES, TRANSFERS, Source, side_data

# swscale's fast path rounds down and takes chroma from the nearest sample: frames come out 1 to 2 levels darker.
# With these flags it agrees with the formula to within rounding.
FAST, ACCURATE = "bilinear", "bilinear+accurate_rnd+full_chroma_int+full_chroma_inp"

# Codecs with chroma samples at the left, as libavcodec's decoders set it; PyAV's frames do not have this field.
CHROMA_ON_THE_LEFT = ("h264", "hevc", "mpeg2video", "mpeg4")
RGB = ("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr", "pal")
FFMPEG_RANGES = {"limited": "tv", "full": "pc"}
FFMPEG_MATRICES = {"bt709": "bt709", "bt601": "smpte170m", "fcc": "fcc", "smpte240m": "smpte240m", "bt2020": "bt2020nc"}

WHITE = 255  # background of transparent video


def converter(source: Source, accurate: bool) -> Callable[[av.VideoFrame], np.ndarray]:
    """A function from a decoded frame to RGB, uint8 [H, W, 3]: upright, with square pixels, in BT.709's colours, on white.

    `accurate` converts by the frame's own matrix and range, with interpolated chroma. swscale's default conversion is faster
    and 1 to 2 levels darker. Colours that need a look-up table are always converted accurately.
    """
    graphs: dict[tuple, Graph] = {}

    def to_rgb(frame: av.VideoFrame) -> np.ndarray:
        tags = frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries
        kind = frame.width, frame.height, frame.format.name, *tags
        if kind not in graphs:
            graphs.clear()
            graphs[kind] = rgb_graph(frame, with_frame_tags(source, frame), accurate)
        graphs[kind].push(frame)
        pixels = packed_pixels(cast(av.VideoFrame, graphs[kind].pull()))
        if pixels.shape[2] == 4:
            pixels = composite_on_white(pixels)
        if source.mirrored:
            pixels = pixels[:, ::-1]
        if source.rotation:
            pixels = np.rot90(pixels, -source.rotation // 90)
        return np.ascontiguousarray(pixels)

    return to_rgb


def with_frame_tags(source: Source, frame: av.VideoFrame) -> Source:
    """The source with the colour tags of a frame, which can change within a video; missing ones stay those of the source."""
    return replace(
        source,
        color_space=MATRICES.get(frame.colorspace, source.color_space),
        color_range=RANGES.get(frame.color_range, source.color_range),
        color_trc=TRANSFERS.get(frame.color_trc, source.color_trc),
        color_primaries=PRIMARIES.get(frame.color_primaries, source.color_primaries),
    )


def rgb_graph(frame: av.VideoFrame, source: Source, accurate: bool) -> Graph:
    """A filter graph from frames like this one to packed RGB, or RGBA for frames with alpha, of the source's stored size.

    Unlike `VideoFrame.reformat`, it reuses the memory of released frames.
    """
    convert = needs_conversion(source.color_trc, source.color_primaries)
    width, height = source.size[::-1] if source.rotation % 180 == 90 else source.size
    flags, chroma = ACCURATE if accurate or convert else FAST, "left" if source.codec in CHROMA_ON_THE_LEFT else "center"
    scaling = f"{width}:{height}:flags={flags}:in_chroma_loc={chroma}:out_range=pc"
    packed = packed_format(frame, source)
    graph = Graph()
    graph.threads = 1  # swscale's own threads cost more than they save here
    filters = [buffer_source(graph, frame), graph.add("setparams", colour_params(source)), graph.add("scale", scaling)]
    if not convert:
        return link_filters(graph, *filters, graph.add("format", packed))
    peak = peak_luminance(frame) if source.color_trc in HDR else PEAK
    with table_file(table(source.color_trc, source.color_primaries, peak)) as name:
        planar = graph.add("format", "gbrap16" if packed == "rgba" else "gbrp16")
        mapping = graph.add("lut3d", f"file={name}:interp=tetrahedral")
        return link_filters(graph, *filters, planar, mapping, graph.add("format", packed))


def colour_params(source: Source) -> str:
    """Arguments of setparams: the frame's matrix and range; primaries and transfer are left to the look-up table."""
    matrix = "gbr" if source.pix_fmt.startswith(RGB) else FFMPEG_MATRICES[source.color_space or default_matrix(source)]
    return f"range={FFMPEG_RANGES.get(source.color_range, 'auto')}:colorspace={matrix}:color_primaries=bt709:color_trc=bt709"


def peak_luminance(frame: av.VideoFrame) -> float:
    """The peak luminance of an HDR frame in cd/m2, from its content light level or its mastering display."""
    data = side_data(frame)
    if (level := data.get("CONTENT_LIGHT_LEVEL")) is not None:
        if peak := int(np.frombuffer(level, np.uint32, 1)[0]):
            return float(peak)
    if (display := data.get("MASTERING_DISPLAY_METADATA")) is not None:
        numbers = np.frombuffer(display, np.int32)  # AVMasteringDisplayMetadata: the last of 10 fractions, and two flags
        if numbers[21] and numbers[19] and numbers[18] > 0:
            return float(numbers[18] / numbers[19])
    return PEAK


def packed_format(frame: av.VideoFrame, source: Source) -> str:
    """The packed format for a frame: rgba if it has alpha, else rgb24."""
    alpha = any(component.is_alpha for component in frame.format.components)
    if frame.format.name == "pal8":
        alpha = source.codec == "png"
    elif source.codec == "rawvideo" and source.container == "avi":
        alpha = False  # the fourth byte of its pixels is unused
    return "rgba" if alpha else "rgb24"


def packed_pixels(frame: av.VideoFrame) -> np.ndarray:
    """The pixels of a packed frame, uint8 [h, w, C], a view of the frame's memory."""
    plane, channels = frame.planes[0], 4 if frame.format.name == "rgba" else 3
    rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width * channels]
    return rows.reshape(frame.height, frame.width, channels)


def composite_on_white(rgba: np.ndarray) -> np.ndarray:
    """RGB of straight RGBA, uint8 [h, w, 4], on white: uint8 [h, w, 3]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return rgba[..., :3]
    return ((rgba[..., :3] * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)


def default_matrix(source: Source) -> str:
    """The matrix that players assume for untagged video: BT.709 from high definition on, else BT.601."""
    return "bt709" if source.height >= 720 or source.width >= 1280 else "bt601"


def deinterlace(stream: Iterator[tuple[Decoder, Decoded]]) -> Iterator[tuple[Decoder, Decoded]]:
    """Pass (decoder, frame) pairs, from the first interlaced frame on, through ffmpeg's bwdif.

    As many frames come out as went in. Frames that are not interlaced are unchanged.
    """
    graph: Graph | None = None
    shape: tuple[int, int, str] | None = None
    pending: deque[tuple[Decoder, Decoded]] = deque()

    def drain(graph: Graph) -> Iterator[tuple[Decoder, Decoded]]:
        """The frames that are ready, with the decoders and indices of those that went in."""
        try:
            while True:
                frame = cast(av.VideoFrame, graph.pull())
                decoder, one = pending.popleft()
                yield decoder, Decoded(one.index, one.tick, frame)
        except (av.BlockingIOError, av.EOFError):
            return

    for decoder, one in stream:
        frame = one.frame
        if graph is None and not frame.interlaced_frame:
            yield decoder, one
            continue
        if graph is None or shape != (frame.width, frame.height, frame.format.name):
            if graph:
                graph.push(None)
                yield from drain(graph)
            shape = frame.width, frame.height, frame.format.name
            graph = Graph()
            link_filters(graph, buffer_source(graph, frame), graph.add("bwdif", "mode=send_frame:deint=interlaced"))
        graph.push(frame)
        pending.append((decoder, one))
        yield from drain(graph)
    if graph:
        graph.push(None)
        yield from drain(graph)
