"""The back end of the web studio: what the pages under `studio/` at the repository's root ask for.

It adds nothing of its own to models, engine or labs; it only tells what they know, as JSON and event streams.
"""
