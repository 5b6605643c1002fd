"""What of the kept results the README quotes: every demand and what became of it, made from the files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geexp.benchmarks.report import in_words
from geexp.benchmarks.rows import Verdict

BEGIN, END = "<!-- benchmarks, by scripts/quote_benchmarks.py -->", "<!-- end of benchmarks -->"


def as_markdown(folder: Path) -> str:
    """Of all result files of a folder, ``operator.json`` and so on, a table each; without a file nothing."""
    return "\n".join(line for file in sorted(folder.glob("*.json")) for line in _quoted(json.loads(file.read_bytes())))


def quoted_in(text: str, folder: Path) -> str:
    """The text with what stands between its two marks replaced by what the folder's files say.

    Raises:
        ValueError: if it has no such marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the text lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{as_markdown(folder)}\n{END}{after}"


def _quoted(document: dict[str, Any]) -> Iterator[str]:
    where = document["environment"]
    on = where["gpu"] if document["config"].get("device") == "cuda" else where["processor"]
    torch = where["versions"]["torch"]
    yield f"{document['title']}; `{document['command']}`, {document['date'][:10]}, {on}, torch {torch}:"
    yield ""
    if document["targets"]:
        yield from ("| case | | | aimed at | measured (range) | |", "|---|---|---|---|---|---|")
    for data in document["targets"]:
        row = Verdict(**data)
        outcome = "met" if row.met else "**missed**"
        yield f"| {row.case} | {row.contender} | {row.name} | {row.sign} {row.bound:g} | {in_words(row)} | {outcome} |"
    yield ""
