"""The report of a circuit: report.html, circuit.svg, circuit.png.

page.py     the report, with page.html as its template and style.css as its style. Read this first
index.py    the page of a job of several tasks, with index.html as its template
web/        the page's script
story.py    how the circuit works, as sentences
html.py     tables, bars, formatted numbers
plots.py    plots as SVG
bridge.py steering.py validation.py   one section of the page each
picture/    the drawing of a circuit

Doors: page, index, html, picture.
"""
