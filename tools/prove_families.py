"""What `cutaway families` says is proven: every family's proofs run, and their largest errors written down.

    PYTHONPATH=tests python tools/prove_families.py

Needs the test extra. A test holds that the record names every family and variant that the tests compare.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from cutaway.files import atomic
from cutaway.models.families.proven import RECORD
from kit.proofs.models import PROOFS, TWIN_PROOFS
from kit.twins import ARCHITECTURES

KINDS = [kind for kind in TWIN_PROOFS if kind not in ("float32", "bfloat16")]  # those in float64


def main() -> None:
    twins = {}
    for name in ARCHITECTURES:
        print(f"proving {name}", file=sys.stderr)
        twins[name] = {kind: PROOFS[f"{kind} {name}"]() for kind in KINDS if f"{kind} {name}" in PROOFS}
    versions = {package: version(package) for package in ("torch", "transformers")}
    with atomic(RECORD) as path:
        path.write_text(json.dumps({"versions": versions, "twins": twins}, indent=1) + "\n")


if __name__ == "__main__":
    main()
