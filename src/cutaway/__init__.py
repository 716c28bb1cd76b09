"""Cutaway: a complete large-language-model system whose every part can be seen, changed and measured."""

__version__ = "0.1.0"
