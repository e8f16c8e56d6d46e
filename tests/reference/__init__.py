"""Literal, slow transcriptions of the papers: dense matrices, float64, nothing shared with the
package."""
