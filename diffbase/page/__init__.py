"""The kit of every report: HTML pages, SVG charts, and grids of pictures."""
