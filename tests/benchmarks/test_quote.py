"""outputs/published/README.md quotes what the published files contain."""

import json
from pathlib import Path

import pytest

from quote import BEGIN, END, quoted_in

PUBLISHED = Path(__file__).parents[2] / "outputs/published"
TARGET = {"name": "step", "case": "a map", "contender": "auto", "sign": "≥", "bound": 2.0, "value": 1.5, "low": 1.0}
DOCUMENT = {
    "title": "Operators",
    "command": "python scripts/benchmarks/operators.py",
    "date": "2026-11-23T12:00:00+00:00",
    "config": {"device": "cpu"},
    "environment": {"gpu": None, "processor": "a processor", "versions": {"torch": "2.11.0"}},
    "targets": [{**TARGET, "high": 1.75, "met": False}, {**TARGET, "low": 1.5, "high": 1.5, "met": True}],
}


def test_the_published_readme_is_up_to_date():
    text = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    assert quoted_in(text, PUBLISHED / "benchmarks") == text, "run python scripts/benchmarks/quote.py"


def test_a_table_of_targets(tmp_path):
    (tmp_path / "operators.json").write_text(json.dumps(DOCUMENT))
    (tmp_path / "startup.json").write_text(json.dumps(DOCUMENT | {"title": "Start-up", "targets": []}))
    text = quoted_in(f"before\n{BEGIN}\nold\n{END}\nafter\n", tmp_path)
    assert text.startswith(
        f"before\n{BEGIN}\nOperators; `python scripts/benchmarks/operators.py`, 2026-11-23, a processor"
    )
    assert "| a map | auto | step | ≥ 2 | 1.500 (1.00-1.75) | **missed** |" in text
    assert "| a map | auto | step | ≥ 2 | 1.500 | met |" in text
    assert "Start-up" not in text  # an empty table says nothing
    assert text.endswith(f"\n{END}\nafter\n")
    assert quoted_in(text, tmp_path) == text


def test_a_text_without_marks(tmp_path):
    with pytest.raises(ValueError, match="lacks the lines"):
        quoted_in("no marks", tmp_path)
