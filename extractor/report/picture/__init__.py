"""A circuit as a picture: one layout, drawn as SVG and as PNG. Same circuit, same bytes; no model and no torch needed.

scene    what there is to draw, in pixels: boxes, wires, chips, labels; colours, and text as one can see it
rows     rows of nodes, bottom to top in forward order, and how much each node can say there
lanes    the residual stream: from node to node, and where it passes between the nodes of other rows
arrange  where in the rows every node goes
layout   a circuit to a scene
drawing  a scene to SVG and to PNG, as it is
"""

from extractor.report.picture.drawing import to_svg, write_png
from extractor.report.picture.layout import layout
from extractor.report.picture.scene import NEGATIVE, PLACE_NAMES, POSITIVE, Scene, describe, short_name, visible

__all__ = ["NEGATIVE", "PLACE_NAMES", "POSITIVE", "Scene", "describe", "layout", "short_name", "to_svg", "visible", "write_png"]
