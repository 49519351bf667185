"""report.html and report.png: one page that needs no network, and its main charts as a picture."""
