"""Pages and pictures: charts drawn once, as SVG inside a self-contained page and as PNG files.

A chart is a value with a title, a description and the table of its numbers. `page.write_page` makes
one HTML file of sections, which needs no network and no script.
"""
