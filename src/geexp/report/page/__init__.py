"""The report as one HTML page that opens from a disk, with no network: statements, tables, curves, runs."""

from geexp.report.page.writing import page, write_page

__all__ = ["page", "write_page"]
