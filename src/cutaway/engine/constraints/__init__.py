"""Constrained decoding: languages that a reply is kept in, and the masks that keep it there."""
