"""Losses, distributions and the mathematics under them."""
