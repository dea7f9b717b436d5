"""Graphs of ffmpeg's filters for decoded frames."""

from fractions import Fraction

import av
from av.filter import Graph


def entrance(graph: Graph, frame: av.VideoFrame):
    """Where frames like this one enter a graph. Its clock does not matter: frames keep their order."""
    return graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))


def linked(graph: Graph, *filters) -> Graph:
    """A graph of filters in a row, ready to be used."""
    graph.link_nodes(*filters, graph.add("buffersink")).configure()
    return graph
