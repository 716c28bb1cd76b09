"""Attention: what it computes, what it costs, what may stand in for it."""
