"""What the paper and its sources state is what the presets compose and the networks count."""

from scripts.audit import STATEMENTS, lines

from geexp.registry import options


def test_every_line_agrees_or_has_a_reason():
    found = lines()
    assert [line for line in found if not line.agrees and not line.reason] == []
    assert {line.what for line in found if not line.agrees} == {
        "GE-θ (E2), MFLOPs", "GE-θ (E4), MFLOPs", "GE-θ (E8), MFLOPs", "SE, #Params, M",
    }  # fmt: skip
    assert not [line for line in found if ", 0 presets" in line.what]
    assert len(found) > len(STATEMENTS)
    assert len(options("experiment")) > 70
