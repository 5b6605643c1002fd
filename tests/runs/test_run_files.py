"""Run records: whole or not there, whatever happens to their files."""

import json

import pytest

from geexp.runs.run_files import append_row, read_history, write_json


def test_write_json_is_atomic_and_refuses_nan(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_history_takes_the_last_row_of_an_epoch_and_survives_a_torn_line(tmp_path):
    path = tmp_path / "history.jsonl"
    append_row(path, {"epoch": 1, "x": 1})
    append_row(path, {"epoch": 2, "x": 2})
    with path.open("a") as file:
        file.write('{"epoch": 3, "x"')  # killed while writing
    append_row(path, {"epoch": 2, "x": 20})
    assert read_history(tmp_path) == [{"epoch": 1, "x": 1}, {"epoch": 2, "x": 20}]
