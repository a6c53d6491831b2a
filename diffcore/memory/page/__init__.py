"""report.html and the page of a comparison: a file a part of the page."""
