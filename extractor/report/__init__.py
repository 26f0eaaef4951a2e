"""The report of a circuit: report.html, circuit.svg, circuit.png.

page.py     the report, with page.html as its template. Read this first
web/        the page's script
story.py    how the circuit works, as sentences
html.py     tables, bars, formatted numbers
plots.py    plots as SVG
bridge.py steering.py validation.py   one section of the page each
picture/    the drawing of a circuit

Doors: page, html, picture.
"""
