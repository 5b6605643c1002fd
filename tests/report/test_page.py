"""The page: what stands in which cell, what is left out, and that nothing in it can fetch or run anything foreign."""

import time
from datetime import datetime

import html5lib
import pytest
from plotly.offline import get_plotlyjs

from geexp.report.page import page, settings, write_page, writing
from geexp.report.report import Report, make_report
from tests.support.made_runs import HOSTILE, paper_identity, write_run, write_some_of_each


def text(element) -> str:
    return " ".join(" ".join(element.itertext()).split())


class Page:
    """The page as a browser reads it; refuses what is not well-formed."""

    def __init__(self, source: str) -> None:
        self.source = source
        ours = source.replace(get_plotlyjs(), "plotly")  # it has characters that are none
        self.root = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(ours)

    def by_id(self, name: str):
        (found,) = (element for element in self.root.iter() if element.get("id") == name)
        return found

    def rows(self, table: str) -> dict[str, list[str]]:
        """The cells of the first table in a section by the labels of their rows."""
        found = next(self.by_id(table).iter("table"))
        return {
            text(row.find("th")): [text(cell) for cell in row.findall("td")]
            for row in found.find("tbody").findall("tr")
        }


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    return make_report(write_some_of_each(tmp_path_factory.mktemp("runs")), ["2", "4", "5", "detection"])


@pytest.fixture(scope="module")
def shown(report) -> Page:
    return Page(page(report, made=datetime(2026, 11, 23, 12)))


def test_measured_stands_beside_printed(shown):
    rows = shown.rows("table-2")
    assert list(rows) == ["ResNet-101", "ResNet-50 (Baseline)", "SE", "GE-θ⁻", "GE-θ", "GE-θ⁺"]
    assert rows["GE-θ"][:6] == [
        "22.00", "22.20 ± 0.28 (n=2, BN over 256)", "+0.20 worse",
        "5.87", "5.55 ± 0.07 (n=2, BN over 256)", "−0.32 better",
    ]  # fmt: skip
    assert rows["GE-θ"][6:] == ["3.87", "3.869", "31.2", "31.19"]
    assert rows["ResNet-50 (Baseline)"][:3] == ["23.30", "23.10 (n=1, BN over 256)", "−0.20 better"]
    assert shown.rows("table-5")["Baseline"][2:4] == ["26.88", "26.88 (n=1) +0.00 equal"]


def test_what_is_not_run_has_its_command(shown):
    command = "python -m geexp.train experiment=table2_theta_plus data.root=/data/imagenet trainer=gpu"
    assert shown.rows("table-2")["GE-θ⁺"][1:3] == ["not run", "–"]
    assert command in text(shown.by_id("table-2-commands"))
    assert command in [button.get("data-copy") for button in shown.by_id("table-2").iter("button")]
    assert "experiment=table2_theta " not in text(shown.by_id("table-2"))
    assert shown.rows("detection")["GE-θ (E8)"] == ["28.6", "not run", "–"]
    assert "experiment=coco_theta_e8 data.root=/data/coco" in text(shown.by_id("detection-commands"))


def test_other_protocols_stand_apart_with_what_differs(shown):
    assert shown.rows("table-2")["SE"][1] == "not run"
    section = text(shown.by_id("table-2"))
    assert (
        "SE top-1 error 24.50 (n=1, BN over 256) top-5 error 6.12 (n=1, BN over 256) trainer.max_epochs 90 (300)"
        in section
    )
    assert "Other protocols" in section
    assert "Other protocols" not in text(shown.by_id("table-5"))  # CIFAR-100 is the paper's, beside CIFAR-10 too


def test_complexity_that_differs_is_explained(shown):
    assert shown.rows("table-4")["SE"][-2:] == ["2.5", "2.62 ≠"]
    assert "≠ SE, #Params, M : computed minus printed +0.12; two 1x1 conv" in text(shown.by_id("table-4-notes"))


def test_statements(shown, report):
    statements = text(shown.by_id("statements"))
    assert "GE-θ⁺ is better than SE and GE-θ outperforms the SE and GE-θ models , section 3.2, Table 2" in statements
    assert "the paper's protocol ? inconclusive not run: " in statements
    for judgement in report.judgements:
        assert judgement.reason in statements


def test_says_what_it_left_out_and_how_much_there_is(shown):
    left = text(shown.by_id("left-out"))
    assert "half result.json is truncated or damaged" in left
    assert "<b>failed<i>" in left
    head = text(shown.root.find("body").find("header"))
    assert "23 November 2026" in head
    assert "finished runs 6 left out, and why 2 of " in head


def test_details_of_runs(shown):
    details = text(shown.by_id("runs"))
    for said in (
        "folder theta-1", "command python -m geexp.train ge=theta", "time 2.1 h", "peak memory 1.00 GiB of the process",
        "commit fe39b04f5d4d376d", "processor AMD EPYC, 2 threads", "Python 3.11.7 · torch 2.11.0", "optim.lr=0.1",
        "data.mean=[0.485, 0.456, 0.406]", "outputs=outputs",
    ):  # fmt: skip
        assert said in details
    rows = list(shown.by_id("all-runs").find("tbody"))
    assert len(rows) == 6
    assert sum(text(row).endswith(" 2") for row in rows) == 3  # the three that fill Table 2


def test_strings_from_files_stay_text(shown):
    assert HOSTILE in text(shown.by_id("runs"))
    assert HOSTILE in text(shown.by_id("left-out"))
    assert not [element for element in shown.root.iter() if element.tag in ("img", "b") and element.get("src")]
    assert len(list(shown.root.iter("script"))) == 3  # the curves' numbers, the page's own, plotly
    for element in shown.root.iter():
        assert not [name for name in element.attrib if name.startswith("on")]
    data = shown.by_id("curve-data").text
    assert not set("<>&") & set(data)


def test_fetches_nothing(shown):
    for element in shown.root.iter():
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            link = element.get(name)
            assert link is None or link.startswith("#"), f"{element.tag} {name}={link}"
    style = text(next(shown.root.iter("style")))
    assert "url(" not in style
    assert "@import" not in style
    policy = next(e.get("content") for e in shown.root.iter("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_every_link_leads_somewhere(shown):
    ids = [element.get("id") for element in shown.root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for link in shown.root.iter("a"):
        assert link.get("href")[1:] in ids


def test_no_machine_paths(report, shown, monkeypatch):
    body = shown.source.partition("</style>")[2].partition('<script type="application/json"')[0]
    assert body.count(str(report.folder)) == 2  # as it was given, in the head and at the end
    monkeypatch.chdir(report.folder.parent)
    assert str(report.folder) not in page(report)
    assert f"<code>{report.folder.name}</code>" in page(report)


def test_without_runs(tmp_path):
    write_page(make_report(tmp_path / "nothing", ["5", "detection"]), tmp_path / "new" / "page.html")
    source = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert len(source) < 100_000  # no plotly without curves
    shown = Page(source)
    assert "No finished run" in text(shown.by_id("curves"))
    assert "No finished run" in text(shown.by_id("runs"))
    assert all(cell == "not run" for cells in shown.rows("table-5").values() for cell in cells[1::2])


def test_curves_of_one_setting_and_protocol_are_drawn_together(report):
    shown, undrawn = settings.settings_of(report.runs, {})
    assert not undrawn
    names = {(setting.name, setting.protocol): [group.label for group in setting.groups] for setting in shown}
    assert names["resnet110, cifar100, preact_cifar", ""] == ["baseline"]
    assert names["resnet50, imagenet, plateau", "other protocols"] == ["SE"]
    assert names["resnet50, imagenet, plateau", "trainer.max_epochs=300"] == ["baseline", "GE-θ"]
    (drawn,) = (setting for setting in shown if setting.protocol == "trainer.max_epochs=300")
    theta = drawn.drawing["groups"][1]
    assert [curve["name"] for curve in theta["curves"]] == ["seed 0", "seed 1"]
    assert theta["colour"] == "#0072B2"
    curve = theta["curves"][0]
    assert len(curve["epoch"]) < 200  # of 300
    assert curve["epoch"][-1] == 300
    assert curve["val"][-1] == 22.0
    assert drawn.step == 2
    assert drawn.legend.columns[2].text(drawn.groups[1]) == "22.20 ± 0.28"


def test_many_seeds_are_drawn_as_their_mean(tmp_path):
    for seed in range(13):
        write_run(tmp_path / str(seed), paper_identity(2, 4), 20.0 + seed, seed=seed)
    (tmp_path / "5" / "history.jsonl").write_bytes(b"\xff\xfe")
    (setting,), _ = settings.settings_of(make_report(tmp_path, []).runs, {})
    assert setting.means
    (curve,) = setting.drawing["groups"][0]["curves"]
    assert curve["name"] == "mean of 12 seeds"
    assert curve["val"][-1] == pytest.approx((sum(range(20, 33)) - 25) / 12, abs=1e-3)
    assert setting.undrawn == ("1 without a history",)


def test_settings_of_another_version_are_shown(tmp_path):
    strange = paper_identity(2, 4)
    strange["later"] = {"unknown": HOSTILE}
    write_run(tmp_path / "a", strange, 20.0, host="\ud800")
    write_page(make_report(tmp_path, []), tmp_path / "page.html")
    shown = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert f"later.unknown={HOSTILE}" in text(shown.by_id("runs"))


def test_many_runs_make_a_page_of_some_megabytes(tmp_path, monkeypatch):
    for n in range(400):
        what = paper_identity(5, n % 5)
        what["optim"]["lr"] = 0.001 * (n + 1)
        write_run(tmp_path / "runs" / str(n), what, 6.0 + n / 100, seed=n)
    monkeypatch.setattr(writing, "DETAILED_RUNS", 50)
    report = make_report(tmp_path / "runs", [])
    begin = time.perf_counter()
    source = page(report)
    assert time.perf_counter() - begin < 20
    assert len(source) < 6_500_000
    shown = Page(source)
    runs = text(shown.by_id("runs"))
    assert len(list(shown.by_id("all-runs").find("tbody"))) == 400
    assert "Of 50 of 400 runs" in runs
    assert len(list(shown.by_id("runs").iter("details"))) == 50
    drawn = text(shown.by_id("curves"))
    assert "beyond the 40 curves that a picture holds" in drawn
