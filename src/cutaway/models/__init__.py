"""Architectures: a `Spec` describes one, `Decoder` and `Encoder` are built from it, `families` translates foreign ones."""
