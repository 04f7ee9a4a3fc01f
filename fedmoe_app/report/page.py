"""Render a page and write it: template, style sheet, Vega, script and data in one file."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import DictLoader, Environment, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from fedmoe_app.config.files import build_once, write_atomic
from fedmoe_app.config.paths import cache_dir
from fedmoe_app.report import template
from fedmoe_app.report.charts import CONFIG
from fedmoe_app.report.embed import SCRIPT
from fedmoe_app.report.style import CSS
from fedmoe_app.results.folder import REPORT_FILE, SAMPLES_FILE
from fedmoe_app.shown.pages import html_data, html_text
from fedmoe_app.shown.pictures import write_bundle

VEGA = "vl-convert-python"


class State(NamedTuple):
    """How far a run is; ``note`` is for the reader."""

    kind: Literal["running", "complete", "failed", "incomplete"]
    note: str


def render(
    name: Literal["run", "comparison"],
    title: str,
    state: State,
    content: Mapping[str, Any],
    data: Mapping[str, Any],
    refresh: int = 0,
) -> str:
    """Return a whole page.

    Args:
        name: which template.
        title: of the page.
        state: shown below the title.
        content: what the template lays out; strings are escaped and what acts is made visible.
        data: what the script draws (``charts``, ``cubes``); plain JSON values.
        refresh: seconds after which the browser loads the page again; 0 for never.
    """
    now = time.time()
    return (
        _environment()
        .get_template(name)
        .render(
            content,
            title=title,
            state=state,
            refresh=refresh,
            css=Markup(CSS),
            style_hash=_source_hash(CSS),
            bundle=Markup(vega_bundle()),
            bundle_hash=_source_hash(vega_bundle()),
            script=Markup(SCRIPT),
            script_hash=_source_hash(SCRIPT),
            # "<", ">", "&" and "'" become \\u escapes: no string can end the element.
            data=htmlsafe_json_dumps(
                html_data({**data, "config": CONFIG}), separators=(",", ":"), allow_nan=False
            ),
            version=_version(),
            epoch=int(now),
            written=f"{datetime.fromtimestamp(now):%Y-%m-%d %H:%M:%S}",
        )
    )


def write_page(folder: Path, text: str) -> Path:
    """Write ``report.html`` into ``folder``; a reader sees the old page or the new one."""
    # With samples it shows text of the test data.
    return write_atomic(folder / REPORT_FILE, text, private=(folder / SAMPLES_FILE).is_file())


@cache
def vega_bundle() -> str:
    """Return the JavaScript of Vega, kept in the cache: making it costs seconds.

    Raises:
        DrawingError: when it cannot be made; PackageNotFoundError without vl-convert.
    """
    folder = cache_dir() / f"vega-{installed_version(VEGA)}"
    built = build_once(folder, lambda draft: write_bundle(draft / "vega.js"))
    return (built / "vega.js").read_text(encoding="utf-8")


@cache  # a live page is rendered after every round
def _environment() -> Environment:
    sources = {
        "base": template.BASE,
        "macros": template.MACROS,
        "run": template.RUN,
        "comparison": template.COMPARISON,
    }
    return Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=html_text,
    )


@cache  # of texts that never change: style sheet, bundle, script
def _source_hash(text: str) -> Markup:
    """Return the source expression by which a content security policy allows just this text."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'")


@cache
def _version() -> str:
    try:
        return installed_version("fedmoe")
    except PackageNotFoundError:  # run out of an app bundle
        return ""
