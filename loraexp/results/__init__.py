"""Records matched to the cells of a sweep: the numbers that a table prints, and how sure they
are."""
