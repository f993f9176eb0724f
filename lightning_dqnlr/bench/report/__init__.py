"""From records to figures, tables and a page."""
