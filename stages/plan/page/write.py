"""Write the page of one run or of several: HTML, style, scripts and data, with relative links alone."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stages.plan.page.rows import RunPage
from stages.runtime.files import replacing, write_if_changed

INDEX, FOLDER, POSTERS, DATA = "index.html", "page", "posters", "data.js"
FILES = "<!-- files -->"  # where the page loads its style and scripts
STYLE = "page.css"
SCRIPTS = ("data.js", "dom.js", "picks.js", "charts.js", "rows.js", "table.js", "compare.js", "runs.js", "page.js")
ASSETS = (STYLE, *(name for name in SCRIPTS if name != DATA))
MOST_EMBEDDED = 50_000_000  # bytes of films in a page that is one file


def posters_folder(page: RunPage) -> Path:
    return page.folder / FOLDER / POSTERS


def write_page(page: RunPage) -> Path:
    """Write the page of a run into its folder, with the posters that are there. Returns its path. Raises OSError."""
    folder = page.folder / FOLDER
    folder.mkdir(exist_ok=True)
    for name in ASSETS:
        write_if_changed(str(folder / name), asset(name))
    write_if_changed(str(folder / DATA), data_script(page))
    write_if_changed(str(page.folder / INDEX), page_of([""]))
    return page.folder / INDEX


def write_common_page(folder: Path, runs: Sequence[Path]) -> Path:
    """Write a page of several runs, which uses the files of their own pages. Returns its path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    bases = [f"{os.path.relpath(run, folder)}/" for run in runs]
    write_if_changed(str(folder / INDEX), page_of(bases))
    return folder / INDEX


def page_of(bases: Iterable[str]) -> str:
    """The HTML of a page of the runs in the folders `bases`, relative to the page, each with a slash at its end or empty."""
    first, *others = [quote(f"{base}{FOLDER}/", errors="surrogateescape") for base in bases]
    links = [f'<link rel="stylesheet" href="{html.escape(first + STYLE)}">']
    sources = [f"{base}{DATA}" for base in (first, *others)] + [first + name for name in SCRIPTS if name != DATA]
    links += [f'<script src="{html.escape(source)}" defer></script>' for source in sources]
    return asset(INDEX).replace(FILES, "\n".join(links))


def data_script(page: RunPage, **more: Any) -> str:
    """A script that hands over the values of a page."""
    known = {name for name in page.posters if (posters_folder(page) / name).is_file()}
    values = {**page.values, "posters": sorted(known), **more}
    text = json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")  # also ASCII alone: no U+2028
    return f"(window.kinemake ??= []).push([document.currentScript.getAttribute('src') ?? '', {text}]);\n"


def write_single_page(path: Path, page: RunPage) -> None:
    """Write a page of one run as one file, with its posters and as many films as have room in it. Raises OSError."""
    script = data_script(page, files=embedded_files(page))
    codes = [script, *(asset(name) for name in SCRIPTS if name != DATA)]
    markup = asset(INDEX).replace("'self'", "'unsafe-inline'").replace(FILES, f"<style>{asset(STYLE)}</style>")
    scripts = "".join(f"<script>{code}</script>\n" for code in codes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(markup.replace("</body>", f"{scripts}</body>"), encoding="utf-8")


def embedded_files(page: RunPage) -> dict[str, str]:
    """Posters and films as data URLs, by their paths in the folder of the run; films up to a size in all."""
    posters = posters_folder(page)
    found = {
        f"{FOLDER}/{POSTERS}/{name}": data_url("image/jpeg", posters / name)
        for name in page.posters
        if (posters / name).is_file()
    }
    left = MOST_EMBEDDED
    for row in page.values["rows"]:
        path = page.folder / row["film"] if row["film"] else None
        if path and path.is_file() and (left := left - path.stat().st_size) >= 0:
            found[row["film"]] = data_url("video/mp4", path)
    return found


def data_url(kind: str, path: Path) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def asset(name: str) -> str:
    return (resources.files("stages.plan.page") / name).read_text(encoding="utf-8")
