"""Before transformers: counting, hidden states, recurrence. Each model whole, and small enough to read.

Tensor names carry their axes as a suffix, as in `cutaway.nn`; besides those there are
  N sequences   B sequences that take the same step   S states of a hidden Markov model or tokens of a source
  C classes
"""
