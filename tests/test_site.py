"""The docs site: built without warnings, nothing from other hosts, a search that works in files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.report.html import browser

pytestmark = pytest.mark.slow
# Loads something: a script, a style sheet, an image, a frame.
LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["'](https?://[^"']+)""")
SEARCH = """
document.querySelector("label[for=__search]").click();
const box = document.querySelector("input[name=query]");
box.focus();
box.value = arguments[0];
box.dispatchEvent(new Event("input", {bubbles: true}));
box.dispatchEvent(new Event("keyup", {bubbles: true}));
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=600)
    return folder


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    found = {
        (page.name, link)
        for page in site.rglob("*.html")
        for link in LOADED.findall(page.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_the_search_works_in_pages_that_are_opened_as_files(site: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def titles(driver: object) -> list[str]:
        found = driver.find_elements("css selector", ".md-search-result__item h1")  # type: ignore[attr-defined]
        return [element.text for element in found]

    for page in ("index.html", "reference/wire.html"):  # paths differ by folder
        with browser.chromium() as driver:
            driver.get((site / page).as_uri())
            driver.execute_script(SEARCH, "patience")
            WebDriverWait(driver, 60).until(titles)
            assert "What a run leaves behind" in titles(driver)
