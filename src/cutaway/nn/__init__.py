"""Mechanisms, each independent of any model: norms, positions, attention, feed-forward.

Every mechanism sits beside the small frozen dataclass that configures it (`NormSpec` with `RMSNorm`, `RopeSpec`
with `rotate`, ...); `cutaway.models.spec.Spec` is nothing but a tree of those dataclasses.

Tensor names carry their axes as a suffix:
  T tokens of a ragged batch   Q queries of one sequence   S keys of one sequence   B sequences of equal length
  D width of the residual stream   H query heads   G key/value heads   K width of one head   F feed-forward width
  N sequences   J parent capsules
  V vocabulary   R rows looked at   E experts   C experts that a token chose   P pairs of token and chosen expert
"""
