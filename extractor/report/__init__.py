"""The report of a circuit: report.html, circuit.svg, circuit.png.

page.py     the report, with page.html as its template and style.css as its style. Read this first
drawings.py   which circuits the page can draw
index.py compare_page.py   a job of several tasks, two circuits: pages without a script, by plain_page.py
web/        the page's script
story.py    how the circuit works, as sentences
html.py     tables, bars, formatted numbers
plots.py    plots as SVG
bridge.py steering.py validation.py   one section of the page each
picture/    the drawing of a circuit

Doors: page, index, compare_page, plain_page, html, picture.
"""
