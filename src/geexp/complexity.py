"""``python -m geexp.complexity``: parameters and multiply-accumulates, counted as in the paper."""

from geexp.config.command import command
from geexp.config.schema import ComplexityConfig


@command("complexity", ComplexityConfig)
def main(config: ComplexityConfig) -> None:
    from geexp.report import complexity_report

    if config.table is not None:
        complexity_report.print_table(config.table, config.format)
    else:
        complexity_report.print_model(config)


if __name__ == "__main__":
    main()
