"""Mistakes in what a model is said to cost."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

COST, FIGURES = "cutaway.models.cost:", "cutaway.budget.figures:"

# fmt: off
MUTANTS = mutants(
    ("cost: a query does not see itself", "budget: pairs", edit(COST + "pairs", "_staircase(keys + 1, window) - _staircase(past + 1, window)", "_staircase(keys, window) - _staircase(past, window)")),
    ("cost: anchors are free", "budget: pairs", edit(COST + "anchors", "a.anchors if", "0 if")),
    ("cost: anchors within the window count twice", "budget: pairs", edit(COST + "pairs", "_staircase(keys - window + 1, anchors(a)) - _staircase(past - window + 1, anchors(a))", "anchors(a) * new")),
    ("cost: both ways, the window reaches too far", "budget: pairs", edit(COST + "_both_ways", "min(i + window, keys)", "min(i + window + 1, keys)")),
    ("cost: both ways, an anchor is like any other", "budget: pairs", edit(COST + "_both_ways", "keys if i < first else", "0 if False else")),
    ("cost: latent, absorbed as naive", "budget: latent", edit(COST + "per_pair", "remembers and", "False and")),
    ("cost: latent, naive as absorbed", "budget: latent", edit(COST + "per_pair", "remembers and", "True and")),
    ("cost: latent, the rotated part has a value too", "budget: latent", edit(COST + "per_pair", "2 * a.kv_rank + a.rope_dim", "2 * (a.kv_rank + a.rope_dim)")),
    ("cost: the source is read for nothing", "budget: source", edit(COST + "Cost.flops", "0 if past else", "0 if True else")),
    ("cost: the source is read with every token", "budget: source", edit(COST + "Cost.flops", "0 if past else", "0 if False else")),
    ("cost: an encoder does not attend", "budget: source", edit(COST + "Cost.flops_of_source", "source + attention", "source + 0 * attention")),
    ("cost: cross-attention is free", "budget: source", edit(COST + "Cost.flops", "attention + across + reading", "attention + 0 * across + reading")),
    ("cost: every token reads experts of its own", "budget: experts", edit(COST + "Cost.read", "1 - (1 - active) ** tokens", "min(1, active * tokens)")),
    ("cost: a token uses all experts", "budget: experts", edit(COST + "used", "part.parameters * part.active", "part.parameters * 1")),
    ("cost: the input table is active", "budget: experts", edit(COST + "used", "('look up', 'nothing')", "('nothing',)")),
    ("balance: caches are read once for all", "budget: balance", edit("cutaway.budget.roofline:balance", "'N·b/M/((2·N + a·C)/R − C·k/M)'", "'(N·b + C·k)/M/((2·N + a·C)/R)'")),
    ("balance: attention computes nothing", "budget: balance", edit("cutaway.budget.roofline:balance", "'N·b/M/((2·N + a·C)/R − C·k/M)'", "'N·b/M/(2·N/R − C·k/M)'")),
    ("activations: scores forgotten", "budget: balance", edit("cutaway.budget.training:activations", "(34 + 5·H·s/D)", "34")),
    ("balance: weights of fewer bits are read whole", "budget: stored weights", edit("cutaway.budget.roofline:balance", "width or width_of(dtype)", "width_of(dtype)")),
    ("latency: weights of fewer bits are read whole", "budget: stored weights", edit("cutaway.budget.roofline:latency", "width or width_of(dtype)", "width_of(dtype)")),
    ("price: an hour has sixty seconds", "budget: price", edit("cutaway.budget.price:per_million", "3600", "60")),
    ("price: every reply reads the weights anew", "budget: price", edit("cutaway.budget.price:of_replies", "'(w + B·k/2)/M'", "'(B·w + B·k/2)/M'")),
    ("price: a cache is full from the first token", "budget: price", edit("cutaway.budget.price:of_replies", "'(w + B·k/2)/M'", "'(w + B·k)/M'")),
    ("formulas: a power of what stands before it", "budget: formulas", edit(FIGURES + "evaluate", ".translate(SIGNS)", ".replace('^', '*').translate(SIGNS)")),
)
