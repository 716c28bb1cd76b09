"""Mistakes in the kernel for GPUs and in what it is told; none that write where nobody reserved memory."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

KERNEL, REPLAY = "cutaway.engine.paged_kernel:paged", "cutaway.engine.replay:"
LAID, STEP = REPLAY + "laid_out", REPLAY + "Replay.__call__"

# fmt: off
MUTANTS = mutants(
    ("paged: a window one longer", "paged window", edit(KERNEL, "> position_M[:, None] - window", ">= position_M[:, None] - window")),
    ("paged: a window that begins a block late", "paged window", edit(KERNEL, "tl.maximum(first - window + 1, 0) // KEYS * KEYS", "tl.maximum(first - window + KEYS, 0) // KEYS * KEYS")),
    ("paged: blocks begin where the window does", "paged to the bit", edit(KERNEL, "tl.maximum(first - window + 1, 0) // KEYS * KEYS", "tl.maximum(first - window + 1, 0)")),
    ("paged: tokens see the next one", "paged plain", edit(KERNEL, "j_N[None, :] <= position_M", "j_N[None, :] <= 1 + position_M")),
    ("paged: the first page for all", "paged plain", edit(KERNEL, "owner * pages + j_N // SIZE", "owner * pages + 0 * j_N")),
    ("paged: another sequence's pages", "paged plain", edit(KERNEL, "owner * pages", "0 * pages")),
    ("paged: what lies beyond the end", "paged plain", edit(KERNEL, "v + at_N[:, None] + e_E[None, :], mask=real_N[:, None] & inside_E[None, :]", "v + at_N[:, None] + e_E[None, :], mask=inside_E[None, :]")),
    ("paged: heads share keys in turn", "paged plain", edit(KERNEL, "g * (HEADS // KV_HEADS) + m_M % SHARED", "g + m_M % SHARED * KV_HEADS")),
    ("paged: the first head's keys for all", "paged plain", edit(KERNEL, "* KV_HEADS + g) * WIDTH", "* KV_HEADS) * WIDTH")),
    ("paged: sums not rescaled", "paged a head each", edit(KERNEL, "sum_M * shrink_M", "sum_M")),
    ("paged: values not rescaled", "paged a head each", edit(KERNEL, "made_ME * shrink_M[:, None]", "made_ME")),
    ("paged: scores not scaled", "paged plain", edit(KERNEL, "* scale", "* 1.0")),
    ("paged: softcap without its height", "paged softcap", edit(KERNEL, "softcap * (1 - 2", "(1 - 2")),
    ("paged: sinks that weigh nothing", "paged sinks", edit(KERNEL, "tl.full([TOKENS * SHARED], 1.0", "tl.full([TOKENS * SHARED], 0.0")),
    ("paged: sinks of another group", "paged sinks", edit(KERNEL, "sinks + head_M", "sinks + m_M % SHARED")),
    ("paged: tiles counted from the batch's beginning", "paged plain", edit(LAID, "(positions_T - start_B[owner_T]) % tile", "np.arange(len(ids)) % tile")),
    ("replay: a spare page that somebody has", "replayed", edit(STEP, "// self.pool.size - 1", "// self.pool.size * 0")),
    ("replay: rows in reverse", "replayed", edit(STEP, "[:len(wanted)]", "[:len(wanted)].flip(0)")),
    ("replay: keys and values change places", "replayed", edit(REPLAY + "Together.attend", "= (k_TGK, v_TGK)", "= (v_TGK, k_TGK)")),
    ("replay: all of a page in its first slot", "replayed", edit(LAID, "* size + positions_T % size", "* size")),
    ("replay: rows wanted counted in each sequence", "replayed", edit(REPLAY + "compute", "hidden_TD[inputs.wanted_R]", "hidden_TD[inputs.positions_T[inputs.wanted_R] % len(hidden_TD)]")),
)
# fmt: on
