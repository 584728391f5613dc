"""Show where a prediction comes from: heatmaps and a page that collects them."""

from __future__ import annotations

from cmamil_sdk.explain.heatmap import draw_heatmap, evidence_grid, save_heatmap
from cmamil_sdk.explain.page import html_page
from cmamil_sdk.explain.report import ReportRow, write_report

__all__ = [
    "ReportRow",
    "draw_heatmap",
    "evidence_grid",
    "html_page",
    "save_heatmap",
    "write_report",
]
