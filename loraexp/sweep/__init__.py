"""A table as data: read, checked, expanded to cells, planned, launched, watched."""
