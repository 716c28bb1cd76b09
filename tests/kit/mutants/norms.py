"""Mistakes in batch normalization, dropout, initialization and the probes that look at it."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

import math
from collections.abc import Callable

from cutaway.nn.init import Matrix
from kit.mutation import Change, edit, mutants, put

BATCH, LAYER, DROPOUT = "cutaway.nn.norms:BatchNorm.", "cutaway.nn.norms:LayerNorm.", "cutaway.nn.dropout:"
INIT, PROBES = "cutaway.nn.init:", "cutaway.nn.probes:"


def scheme(name: str, std: Callable[[Matrix, float], float]) -> Change:
    """Another formula for the standard deviations of a scheme."""
    return put("cutaway.nn.init:SCHEMES", name, lambda _: std)


WRITES = r"(?:.*\.)?(attention\.out|cross\.out|down)(\.weight)?"

# fmt: off
MUTANTS = (
    *mutants(
        ("batch norm: over the width", "batch-norm", edit(BATCH + "_statistics", "torch.var_mean(x_TD, 0,", "torch.var_mean(x_TD,")),
        ("batch norm: unbiased variance in training", "batch-norm", edit(BATCH + "_statistics", "correction=0", "correction=1")),
        ("batch norm: biased variance kept", "batch-norm", edit(BATCH + "_statistics", "unbiased_D = var_D * len(x_TD) / (len(x_TD) - 1)", "unbiased_D = var_D")),
        ("batch norm: momentum of the old value", "batch-norm", edit(BATCH + "_statistics", "self.momentum", "1 - self.momentum")),
        ("batch norm: batch statistics in evaluation", "batch-norm", edit(BATCH + "_statistics", "not self.training", "False")),
        ("batch norm: running statistics in training", "batch-norm",
            edit(BATCH + "_statistics", "return (mean_D, var_D)", "return (self.running_mean, self.running_var)")),
        ("batch norm: no gradient through the statistics", "batch-norm",
            edit(BATCH + "_statistics", "return (mean_D, var_D)", "return (mean_D.detach(), var_D.detach())")),
        ("batch norm: epsilon outside the root", "batch-norm", edit(BATCH + "forward", "torch.rsqrt(var_D + self.eps)", "1 / (var_D.sqrt() + self.eps)")),
        ("batch norm: bias dropped", "batch-norm", edit(BATCH + "forward", "scaled_TD + self.bias", "scaled_TD + 0 * self.bias")),
        ("layer norm: bias in spite of the spec", "norm-bias layer", edit(LAYER + "__init__", "if bias else None", "if True else None")),
        ("batch norm: bias in spite of the spec", "norm-bias batch", edit(BATCH + "__init__", "if bias else None", "if True else None")),
    ),
    *mutants(
        ("dropout: survivors not scaled", "dropout inverted", edit(DROPOUT + "dropout", "kept / (1 - p)", "kept")),
        ("dropout: survivors scaled by p", "dropout inverted", edit(DROPOUT + "dropout", "kept / (1 - p)", "kept / p")),
        ("dropout: keeps where it should drop", "dropout inverted", edit(DROPOUT + "dropout", "< p", ">= p")),
        ("dropout: one mask for all rows", "dropout inverted", edit(DROPOUT + "dropout", "torch.rand(x.shape,", "torch.rand(x.shape[:1] + (1,) * (x.ndim - 1),")),
        ("dropout: gradient past the mask", "dropout inverted",
            edit(DROPOUT + "dropout", "kept = x.masked_fill(dropped, 0)", "kept = x + (x.masked_fill(dropped, 0) - x).detach()")),
        ("dropout: original form scales in training too", "dropout original", edit(DROPOUT + "dropout", "if inverted else kept", "if True else kept")),
        ("dropout: original form not scaled at inference", "dropout inference", edit(DROPOUT + "Dropout.forward", "x * (1 - self.p)", "x")),
        ("dropout: drops at inference", "dropout inference", edit(DROPOUT + "Dropout.forward", "self.training and self.p", "self.p")),
        ("dropout: inverted form scaled at inference too", "dropout inference",
            edit(DROPOUT + "Dropout.forward", "self.inverted or self.training", "self.training")),
    ),
    *mutants(
        ("xavier: fan-in alone", "init xavier", scheme("xavier", lambda m, std: math.sqrt(1 / m.fan_in))),
        ("xavier: without the 2", "init xavier", scheme("xavier", lambda m, std: math.sqrt(1 / (m.fan_in + m.fan_out)))),
        ("kaiming: fan-out", "init kaiming", scheme("kaiming", lambda m, std: math.sqrt(2 / m.fan_out))),
        ("kaiming: variance for deviation", "init kaiming", scheme("kaiming", lambda m, std: 2 / m.fan_in)),
        ("lecun: without the root", "init lecun", scheme("lecun", lambda m, std: 1 / m.fan_in)),
        ("init: biases as PyTorch draws them", "init normal", edit(INIT + "initialize", "name.endswith('bias')", "False")),
        ("init: norms zeroed", "init normal", edit(INIT + "initialize", "name.endswith('bias')", "p.ndim == 1")),
        ("init: embeddings by the scheme", "init xavier", edit(INIT + "initialize", "m.role == 'embedding'", "False")),
        ("init by depth: 1 / N for 1 / sqrt(N)", "init depth",
            scheme("depth", lambda m, std: std / m.writers if m.role == "residual" else std)),
        ("init by depth: sqrt(L) for sqrt(2 L)", "init depth",
            edit(INIT + "matrices", "re.sub('(attention|cross|ffn)\\\\..*', '\\\\1', name)", "re.sub('(attention|cross|ffn)\\\\..*', '', name)")),
        ("init by depth: everything smaller", "init depth", scheme("depth", lambda m, std: std / math.sqrt(m.writers))),
        ("init by depth: nothing smaller", "init depth", put("cutaway.nn.init:ROLES", WRITES, lambda _: "hidden")),
    ),
    *mutants(
        ("mup: head like a hidden matrix", "mup tables", scheme("mup", lambda m, std: std / math.sqrt(m.growth))),
        ("mup: hidden matrices by 1 / growth", "mup tables", scheme("mup", lambda m, std: std / m.growth)),
        ("mup: one rate for all", "mup moves", edit(INIT + "mup_groups", "'lr': lr / g}", "'lr': lr}")),
        ("mup: rates by the root of the growth", "mup tables", edit(INIT + "mup_groups", "'lr': lr / g}", "'lr': lr / g ** 0.5}")),
        ("mup: embeddings slowed too", "mup tables", edit(INIT + "mup_groups", "if m.role != 'embedding'", "if m.role")),
        ("mup: growth upside down", "mup tables", edit(INIT + "matrices", "p.shape[-1] / fans[name]", "fans[name] / p.shape[-1]")),
        ("probe: squares without the root", "probe", edit(PROBES + "rms", ".sqrt()", "")),
        ("probe: gradients of parameters not summed in squares", "probe", edit(PROBES + "_norm", "sum((size ** 2 for size in sizes)) ** 0.5", "sum(sizes) / 2")),
    ),
)
