"""Persistent keys stay what they were, in every process."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import run_python

PINNED = json.loads((Path(__file__).parent / "golden_keys.json").read_text())


def test_keys_are_pinned_and_do_not_depend_on_the_process() -> None:
    source = "import json; from tests.golden_keys import keys; print(json.dumps(keys()))"
    repository = str(Path(__file__).parent.parent)
    for seed in ("0", "1", "12345"):
        assert json.loads(run_python(source, PYTHONHASHSEED=seed, PYTHONPATH=repository)) == PINNED


def test_pinned_calls_have_different_keys() -> None:
    assert len(set(PINNED.values())) == len(PINNED)
