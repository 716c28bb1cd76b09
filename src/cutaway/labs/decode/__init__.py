"""Choosing tokens: search, repetition, candidates, languages that a reply is kept in, and where it ends."""
