"""Rows from files or a hub, as text, then as tokens; draws that depend on the content alone."""
