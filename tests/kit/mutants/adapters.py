"""Mistakes with adapters."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

READ, WORK, RUNNER = "cutaway.weights.adapters:", "cutaway.engine.adapters:", "cutaway.engine.runner:"
TAPE, GRAPH = "cutaway.native.adapters:", "cutaway.engine.graph:"

# fmt: off
MUTANTS = mutants(
    ("adapters: alpha is not divided by the rank", "adapters modules llama",
        edit(READ + "_scale", "alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)", "alpha")),
    ("adapters: the rank for its root, and the root for the rank", "adapters modules llama",
        edit(READ + "_scale", "if config.get('use_rslora')", "if not config.get('use_rslora')")),
    ("adapters: one alpha for all modules", "adapters modules llama",
        edit(READ + "_scale", "'alpha_pattern'", "'no_pattern'")),
    ("adapters: a pattern matches anywhere in a name", "adapters reading llama",
        edit(READ + "_of", "re.match(f'(.*\\\\.)?({p})$', module)", "re.search(p, module)")),
    ("adapters: scaled by nothing", "adapters modules llama",
        edit(WORK + "changes", "b_NR.double() * scale", "b_NR.double()")),
    ("adapters: fused rows in reverse", "adapters modules gpt2",
        edit(READ + "_parts", "b_NR[part[:, 0]]", "b_NR[part[:, 0].flip(0)]")),
    ("adapters: rows of somebody else", "adapters modules llama",
        edit(RUNNER + "rows_of", "range(end - count, end)", "range(count)")),
    ("adapters: only the first of a batch", "adapters modules llama",
        edit(WORK + "Twin._add", "in self._rows:", "in self._rows[:1]:")),
    ("adapters: the last in place of the others", "adapters modules llama",
        edit(WORK + "Twin._add", "y_TN = y_TN.index_add(0, rows_M, given[0][rows_M] @ a_RK.T @ b_NR.T)",
             "y_TN = y_TN.index_copy(0, rows_M, given[0][rows_M] @ a_RK.T @ b_NR.T)")),
    ("adapters: pages shared with the bare model", "adapters pages llama",
        edit(RUNNER + "salt", "(adapter.salt if adapter else b'') + ", "")),
    ("adapters: pages of one that had the name before", "adapters pages llama",
        edit(WORK + "Adapters.load", "read_adapter(source, self.spec)))", "read_adapter(source, self.spec)), name.encode())")),
    ("adapters: an unloaded name is still known", "adapters leaving llama",
        edit(WORK + "Adapters.unload", "self.loaded.pop(name, None) is None", "name not in self.loaded")),
    ("adapters: something keeps what was unloaded", "adapters leaving llama",
        edit(WORK + "Twin.__call__", "self._rows = []", "pass")),
    ("tape: the joined matrices read the first one's ranks", "adapters native llama",
        edit(TAPE + "Adapted._fill", "ends[name] - len(a_RK)", "0")),
    ("tape: every panel has the first one's rows of B", "adapters native llama",
        edit(TAPE + "Adapted._fill", "row:row + LANES", "0:LANES")),
    ("tape: B is read from its beginning", "adapters native llama",
        edit(TAPE + "Adapted._fill", "at += len(a_RK)", "at += 0")),
    ("tape: scaled by nothing", "adapters native llama", edit(TAPE + "Adapted._fill", "at, scale)", "at, 1.0)")),
    ("tape: the first sequence's adapter for all", "adapters native llama",
        edit(TAPE + "adapt", "for made in adapters]", "for made in [adapters[1]] * len(adapters)]")),
    ("tape: gate and up one after the other", "adapters native llama",
        edit(GRAPH + "Graph._ffn", "for n in names}, GROUP)", "for n in names})")),
)
# fmt: on
