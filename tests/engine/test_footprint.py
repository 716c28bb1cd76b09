"""How much memory a model takes beside its weights; `kit.proofs.footprint` says how that is measured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kit.proofs.footprint import PROOFS

UNNEEDED = {"cutaway.labs.catalogue", "huggingface_hub", "httpx", "transformers", "triton", "torch._dynamo", "sympy"}


@pytest.mark.parametrize("name", PROOFS)
def test_little_beside_the_weights(name):
    PROOFS[name]()


def test_a_server_imports_neither_labs_nor_what_pulling_needs():
    """Together they take a second and 100 MB."""
    code = f"import sys, cutaway.cli.main, cutaway.studio.app; print(*{UNNEEDED} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []
