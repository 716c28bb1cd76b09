"""Ways to take more memory than weights need, and a mistake that comes with taking less."""

# ruff: noqa: E501  (one mutant a row)

from __future__ import annotations

from kit.mutation import edit, mutants

GRAPH, FILE = "cutaway.engine.graph:Graph.", "cutaway.weights.gguf:GGUF."

# fmt: off
MUTANTS = mutants(
    ("footprint: pages of the file stay", "footprint gguf", edit(FILE + "raw", "MADV_DONTNEED", "MADV_NORMAL")),
    ("footprint: a file stays open", "footprint safetensors", edit("cutaway.weights.safetensors:Shards.__getitem__", "safe_open(file, framework='pt')", "vars(self).setdefault(file, safe_open(file, framework='pt'))")),
    ("footprint: rows copied before they are packed", "footprint gguf", edit("cutaway.engine.matrices:OfCheckpoint.matrix", "Stored(*found)", "Stored.of(Stored(*found).numbers)")),
    ("footprint: rotations of the whole context", "footprint rotations", edit(GRAPH + "__call__", "self.turned < batch.end", "self.turned < 4096")),
    ("footprint: rotations of the first stretch only", "footprint rotations", edit(GRAPH + "__call__", "while", "if")),
    ("footprint: every stretch is the first", "footprint rotations", edit(GRAPH + "_turn", "positions_T, torch.float32", "positions_T % STRETCH, torch.float32")),
)
# fmt: on
