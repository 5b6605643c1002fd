"""``python -m geexp.export``: write a trained network as a torch.export program or as ONNX, for use without geexp."""

from geexp.config.command import command
from geexp.config.extras import require_extras
from geexp.config.schema import ExportConfig


@command("export", ExportConfig)
def main(config: ExportConfig) -> None:
    if config.format == "onnx":
        require_extras("format=onnx", "onnx")
    from geexp.analysis.export import export

    exported = export(config)
    print(
        f"{exported.path}: largest difference from the network's own outputs {exported.difference:.2g} on "
        f"{exported.checked_on} (tolerance {exported.tolerance:.2g})"
    )


if __name__ == "__main__":
    main()
