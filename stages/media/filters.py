"""Filter graphs of ffmpeg for decoded frames."""

from fractions import Fraction

import av
from av.filter import Graph
from av.filter.context import FilterContext


def buffer_source(graph: Graph, frame: av.VideoFrame) -> FilterContext:
    """Add a buffer source for frames like this one. Its time base is arbitrary: frames keep their order."""
    return graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))


def link_filters(graph: Graph, *filters: FilterContext) -> Graph:
    """Link filters in a row, with a sink at the end, and configure the graph."""
    graph.link_nodes(*filters, graph.add("buffersink")).configure()
    return graph
