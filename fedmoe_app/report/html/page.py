"""Render a page and write it: template, style sheet, script and data in one file."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import DictLoader, Environment, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from fedmoe_app.config.files import write_atomic
from fedmoe_app.report.html import template
from fedmoe_app.report.html.script_charts import CHARTS_JS
from fedmoe_app.report.html.script_maps import MAPS_JS
from fedmoe_app.report.html.script_page import PAGE_JS
from fedmoe_app.report.html.style import CSS
from fedmoe_app.results.folder import REPORT_FILE, SAMPLES_FILE
from fedmoe_app.shown.pages import html_data, html_text

SCRIPT = f'"use strict";\n{PAGE_JS}{CHARTS_JS}{MAPS_JS}start();\n'


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
        data: what the script draws (``charts``, ``cubes``, ``maps``); plain JSON values.
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
            script=Markup(SCRIPT),
            script_hash=_source_hash(SCRIPT),
            # "<", ">", "&" and "'" become \\u escapes: no string can end the element.
            data=htmlsafe_json_dumps(html_data(data), separators=(",", ":"), allow_nan=False),
            version=_version(),
            epoch=int(now),
            written=f"{datetime.fromtimestamp(now):%Y-%m-%d %H:%M:%S}",
        )
    )


def write_page(folder: Path, text: str) -> Path:
    """Write ``report.html`` into ``folder``; a reader sees the old page or the new one."""
    # With samples it shows text of the test data.
    return write_atomic(folder / REPORT_FILE, text, private=(folder / SAMPLES_FILE).is_file())


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


def _source_hash(text: str) -> Markup:
    """Return the source expression by which a content security policy allows just this text."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'")


def _version() -> str:
    try:
        return installed_version("fedmoe")
    except PackageNotFoundError:  # run out of an app bundle
        return ""
