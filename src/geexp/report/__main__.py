"""``python -m geexp.report``: the paper's tables and figures beside measured results, as files and as one page."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from geexp.config.command import command
from geexp.config.errors import ConfigError
from geexp.config.extras import require_extras
from geexp.config.process import PlainConsole
from geexp.config.schema import ReportConfig

TABLES = ["1", "2", "3", "4", "5", "6", "detection"]


@command("report", ReportConfig)
def main(config: ReportConfig) -> None:
    require_extras("geexp.report", "report")
    at_wandb = config.runs.startswith("wandb:")
    folder = Path(config.runs)
    if not folder.is_dir() and not at_wandb and config.runs != "outputs":  # the default may be missing
        raise ConfigError(f"runs={config.runs}: there is no such folder.")
    out = Path(config.out) if config.out else (Path("outputs") if at_wandb else folder) / "report"
    print("reading the runs and counting the networks", file=sys.stderr)

    from geexp.data.parallel import waiting
    from geexp.report.claims import describe
    from geexp.report.comparison import trained, write_comparison
    from geexp.report.differences import write_differences
    from geexp.report.figures import draw_figures
    from geexp.report.measured import Runs
    from geexp.report.page import write_page
    from geexp.report.paper_tables import write_tables
    from geexp.report.report import make_report
    from geexp.report.summary import FIT_ON_A_TERMINAL, as_dict, print_summary
    from geexp.report.tables import to_markdown

    one_table = [str(config.table)] if config.table else TABLES
    report = make_report(folder, one_table if config.tables == "all" else [])
    few = report.runs if len(report.runs) <= FIT_ON_A_TERMINAL and not at_wandb else ()
    rows = []
    for detectors, place in ((False, out), (True, out / "detection")):
        if runs := [run for run in few if run.detector == detectors]:
            rows += write_comparison(runs, place, show=config.format == "text")
    if config.format == "json":
        print(json.dumps(as_dict(report) | {"rows": [asdict(row) for row in rows]}))
    else:
        print_summary(report, PlainConsole(), every_table=config.table is not None)
    write_tables(report, out)
    if report.runs:
        for name, text in (("trained", to_markdown(trained(report.runs))), ("claims", describe(report.judgements))):
            (out / f"{name}.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    with waiting("drawing the figures and writing the page"):
        figures = draw_figures(Runs(report.runs), out) if config.figures == "all" and config.table is None else []
        write_differences(report.comparisons, out)
        write_page(report, out / "report.html", figures=figures)
    print(f"tables and figures: {out}\npage: {out / 'report.html'}", file=sys.stderr)


if __name__ == "__main__":
    main()
