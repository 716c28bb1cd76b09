"""Experts: more parameters than a token uses."""
