"""One HTML page about an output: where its scenes lie, what they look like, what they took.

`gather` reads, `page` writes: the page is one file, asks no network, and is safe to open whatever
the output holds.
"""

from geosam_stac.report.facts import Limits, Report
from geosam_stac.report.gather import gather
from geosam_stac.report.page import render

__all__ = ["Limits", "Report", "gather", "render"]
