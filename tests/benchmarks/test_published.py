"""The README says of speed what the kept files say."""

import json
from pathlib import Path

import pytest

from geexp.benchmarks.published import BEGIN, END, as_markdown, quoted_in

ROOT = Path(__file__).parents[2]
VERDICT = {"name": "faster", "case": "a map", "contender": "auto", "sign": "≥", "bound": 2.0, "value": 1.5, "low": 1.0}
DOCUMENT = {
    "title": "Operators",
    "command": "python -m geexp.benchmark what=operator",
    "date": "2026-11-23T12:00:00+00:00",
    "config": {"device": "cpu"},
    "environment": {"gpu": None, "processor": "a processor", "versions": {"torch": "2.11.0"}},
    "targets": [{**VERDICT, "high": 1.75, "met": False}, {**VERDICT, "low": 1.5, "high": 1.5, "met": True}],
}


def test_readme_quotes_the_published_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert quoted_in(text, ROOT / "outputs/published/benchmarks") == text, "run python scripts/quote_benchmarks.py"


def test_a_table_of_demands(tmp_path):
    (tmp_path / "operator.json").write_text(json.dumps(DOCUMENT))
    markdown = as_markdown(tmp_path)
    assert "`python -m geexp.benchmark what=operator`, 2026-11-23, a processor, torch 2.11.0:" in markdown
    assert "| a map | auto | faster | ≥ 2 | 1.500 (1.00-1.75) | **missed** |" in markdown
    assert "| a map | auto | faster | ≥ 2 | 1.500 | met |" in markdown
    text = quoted_in(f"before\n{BEGIN}\nold\n{END}\nafter\n", tmp_path)
    assert text == f"before\n{BEGIN}\n{markdown}\n{END}\nafter\n"
    assert quoted_in(text, tmp_path) == text


def test_a_text_without_marks(tmp_path):
    with pytest.raises(ValueError, match="lacks the lines"):
        quoted_in("no marks", tmp_path)
