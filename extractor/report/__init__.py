"""A circuit and its numbers for people: report.html, circuit.svg, circuit.png.

page.py                     the report, with page.html as its frame. Read this first
html.py                     tables, bars, numbers
plots.py validation_plots.py  line plots as SVG
bridge.py steering.py validation.py  one section of the page each
picture/                    the drawing of a circuit

Doors: page, html, picture.
"""
