"""The picture of a circuit: one layout, drawn as SVG and as PNG. The same circuit gives the same bytes. Needs no model and no torch.

layout   circuit -> scene. Read this first
part     what is shown of a large circuit
rows     rows of nodes, bottom to top in forward order, and the amount of text on each node
lanes    the residual stream between nodes, and its places between the nodes of other rows
arrange  the position of every node in the rows
scene    what is drawn, in pixels: boxes, wires, chips, labels; colours, printable text
drawing  scene -> SVG, scene -> PNG
"""

from extractor.report.picture.drawing import to_svg, write_png
from extractor.report.picture.lanes import residual_streams
from extractor.report.picture.layout import layout
from extractor.report.picture.scene import NEGATIVE, PLACE_NAMES, POSITIVE, Scene, describe, short_name, site_words, visible

__all__ = [
    "NEGATIVE",
    "PLACE_NAMES",
    "POSITIVE",
    "Scene",
    "describe",
    "layout",
    "residual_streams",
    "short_name",
    "site_words",
    "to_svg",
    "visible",
    "write_png",
]
