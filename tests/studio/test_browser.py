"""The studio in headless Chromium: the files of studio/tests, run by Node.js against a real server and model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STUDIO = Path(__file__).parents[2] / "studio"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
    pytest.mark.skipif(not (STUDIO / "node_modules").is_dir(), reason="the studio is not built"),
]


@pytest.fixture(scope="module")
def url(smollm2_gguf: Path, minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `cutaway serve` says it answers."""
    command = [sys.executable, "-c", "from cutaway.cli.main import run; run()"]
    command += ["serve", "smollm2-135m-instruct", "--embeddings", "all-minilm-l6-v2", "--port", "0"]
    folder = tmp_path_factory.mktemp("server")
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
        try:
            line = process.stdout.readline() if process.stdout else ""
            assert "http://" in line, (folder / "log").read_text()
            yield line[line.index("http://") :].strip()
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.mark.parametrize("name", sorted(path.name for path in (STUDIO / "tests").glob("*.test.mjs")))
def test_in_the_browser(url: str, name: str) -> None:
    environment = {**os.environ, "CUTAWAY_URL": url, "CUTAWAY_CHROMIUM": str(CHROMIUM)}
    command = ["node", "--test", "--test-reporter=spec", "--test-timeout=90000", f"tests/{name}"]
    run = subprocess.run(command, cwd=STUDIO, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
