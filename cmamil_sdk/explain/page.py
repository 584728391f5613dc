"""The frame of the house's HTML pages: one look, no network, no script."""

from __future__ import annotations

from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #1c1c1c; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.wrong { color: #b00020; font-weight: 600; }
.wide { overflow-x: auto; }
.slides { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure img { width: 100%; border: 1px solid #ddd; }
figure.plot { margin: 1rem 0; } figure.plot img { width: auto; max-width: 100%; border: 0; }
figcaption { font-size: .9rem; color: #444; }
pre { background: #f5f5f5; padding: .6rem .8rem; overflow-x: auto; font-size: .9rem; }
"""


def html_page(title: str, body: str) -> bytes:
    """A whole page in UTF-8: ``title`` is plain text, ``body`` is HTML that follows the headline."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{body}</body></html>\n"
    ).encode()


__all__ = ["html_page"]
