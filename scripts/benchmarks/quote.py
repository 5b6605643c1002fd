"""Insert the results of outputs/published/benchmarks into outputs/published/README.md, between its two markers.

    python scripts/benchmarks/quote.py
    python scripts/benchmarks/quote.py outputs/gpu_day    # prints those of another folder

Results are published as ``python scripts/benchmarks/operators.py --out outputs/published/benchmarks/operators.json``.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import ROOT, describe_outcome

BEGIN, END = "<!-- benchmarks, by scripts/benchmarks/quote.py -->", "<!-- end of benchmarks -->"


def quoted_in(text: str, folder: Path) -> str:
    """The text with one table between its markers for each result file in the folder that has targets.

    Raises:
        ValueError: if the markers are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the text lacks the lines {BEGIN} and {END}")
    return "\n".join([before + BEGIN, *tables_of(folder), END + after])


def tables_of(folder: Path) -> list[str]:
    """The lines of the tables."""
    documents = [json.loads(file.read_bytes()) for file in sorted(folder.glob("*.json"))]
    return [line for document in documents if document["targets"] for line in _table(document)]


def _table(document: dict[str, Any]) -> Iterator[str]:
    where = document["environment"]
    device = where["gpu"] if document["config"].get("device") == "cuda" else where["processor"]
    date, torch = document["date"][:10], where["versions"]["torch"]
    yield f"{document['title']}; `{document['command']}`, {date}, {device}, torch {torch}:"
    yield ""
    yield from ("| case | contender | figure | target | measured (range) | |", "|---|---|---|---|---|---|")
    yield from (f"| {' | '.join(describe_outcome(one))} |" for one in document["targets"])
    yield ""


def main() -> None:
    if sys.argv[1:]:
        print("\n".join(tables_of(Path(sys.argv[1]))))
        return
    readme = ROOT / "outputs/published/README.md"
    text = quoted_in(readme.read_text(encoding="utf-8"), readme.parent / "benchmarks")
    readme.write_text(text, encoding="utf-8")
    print(f"written: {readme}")


if __name__ == "__main__":
    main()
