"""Order: how a model knows where a token stands, and how far that reaches."""
