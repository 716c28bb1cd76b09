"""Architectures: `Spec` describes one, `Decoder` and `Encoder` are built from it, `families` translates others'."""
