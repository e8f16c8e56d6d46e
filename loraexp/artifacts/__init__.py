"""A table, a figure, the report page, made from results."""
