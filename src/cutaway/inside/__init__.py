"""Seeing inside a model: what it looks at, what it knows at each layer, and what changes if a part is changed."""
