"""Put the results of outputs/published/benchmarks into README.md.

    python scripts/quote_benchmarks.py

Results get there as files of ``python -m geexp.benchmark what=… out=outputs/published/benchmarks/….json``.
"""

from pathlib import Path

from geexp.benchmarks.published import quoted_in

ROOT = Path(__file__).parents[1]


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(quoted_in(readme.read_text(encoding="utf-8"), ROOT / "outputs/published/benchmarks"), "utf-8")
    print(f"written: {readme}")


if __name__ == "__main__":
    main()
