"""``python -m geexp.analyze``: the paper's analyses of a trained network, with data and pictures as files."""

from geexp.config.command import command
from geexp.config.extras import require_extras
from geexp.config.ranks import require_ranks
from geexp.config.schema import AnalyzeConfig


@command("analyze", AnalyzeConfig)
def main(config: AnalyzeConfig) -> None:
    require_ranks("analyze", devices=config.devices)
    require_extras("geexp.analyze", "report")
    if config.analysis == "curves":
        from geexp.analysis.curves import draw_curves

        draw_curves(config)
        return
    from geexp.analysis.analyse import analyse

    analyse(config)


if __name__ == "__main__":
    main()
