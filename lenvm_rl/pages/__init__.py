"""HTML pages to open from disk: the viewer and the report."""
