"""The pages in a real browser, at the widths of a phone and of a desk, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from fedmoe_app.cli.report import write_report
from tests.report.html import browser
from tests.report.html.browser import DESKTOP, PHONE, open_page
from tests.report.html.runs import client, line, with_pairs, write_run
from tests.report.html.test_page import hostile_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "-"),
]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium() as found:
        yield found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A run of eight clients whose routing changes from round to round."""
    clients = tuple(range(8))
    lines = [line(0)]
    for number in (1, 2, 3):
        entry = line(number, clients, experts=8)
        entry["routing"]["count"] = [
            [[1 + (e == number) * 9 for e in range(8)] for _ in range(2)] for _ in clients
        ]
        entry["clients"] = [client(i, local_accuracy=(i * 3 % 8) / 10) for i in clients]
        pairs = np.eye(8)[None, None].repeat(2, 0).repeat(8, 1)
        entry["diagnostics"] = {"conflict": [[0.1 * number, None] * 4] * 2}
        lines.append(with_pairs(entry, pairs))
    return write_report([write_run(tmp_path / "run", lines)])


def faults(driver: Any) -> list[str]:
    """What the browser has complained of since it was asked last."""
    return [entry["message"] for entry in driver.get_log("browser")]


def ready(driver: Any) -> bool:
    return driver.execute_script("return document.documentElement.dataset.ready") == "yes"


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_and_has_no_faults(
    driver: Any, page: Path, tmp_path: Path, size: tuple[int, int], dark: bool
) -> None:
    open_page(driver, page, size, dark)
    assert ready(driver)
    assert faults(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert (
        driver.execute_script("return document.querySelectorAll('figure .plot svg').length") == 10
    )
    shot = imread(browser.screenshot(driver, tmp_path / "page.png"))
    assert shot.shape[1] == size[0]
    assert shot.shape[0] > 1500
    assert (shot[5, 5, :3].mean() < 0.3) == dark


def cells(driver: Any, name: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(cell => cell.dataset.value)"
    return driver.execute_script(script, f"#{name} rect.cell")


def move(driver: Any, name: str, place: int) -> str:
    """Put a map's slider at a place, as a reader does; return what it then says."""
    script = """
      const slider = document.querySelector(`#${arguments[0]} input[type=range]`);
      slider.value = arguments[1];
      slider.dispatchEvent(new Event("input"));
      return slider.parentElement.querySelector("output").textContent;"""
    return driver.execute_script(script, name, place)


def test_the_slider_moves_the_heat_map(driver: Any, page: Path) -> None:
    open_page(driver, page, DESKTOP)
    last = cells(driver, "routing-layers")
    assert len(last) == 16
    # Eight experts, one of which got ten tokens of seventeen.
    assert [i for i, value in enumerate(last) if float(value) == 0.5882] == [3, 11]
    assert move(driver, "routing-layers", 0) == "round 1"
    first = cells(driver, "routing-layers")
    assert [i for i, value in enumerate(first) if float(value) == 0.5882] == [1, 9]
    assert move(driver, "trained", 3) == "all rounds"
    assert set(cells(driver, "trained")) == {"6"}
    assert move(driver, "trained", 1) == "round 2"
    assert set(cells(driver, "trained")) == {"2"}
    assert faults(driver) == []


def test_the_choice_of_a_client_stays_when_the_page_is_loaded_again(
    driver: Any, page: Path
) -> None:
    from selenium.webdriver.support.ui import Select

    open_page(driver, page, DESKTOP)
    choice = "#routing-layers select"
    Select(driver.find_element("css selector", choice)).select_by_visible_text("client 3")
    move(driver, "routing-layers", 1)
    driver.refresh()
    select = Select(driver.find_element("css selector", choice))
    assert select.first_selected_option.text == "client 3"
    label = driver.find_element("css selector", "#routing-layers output").text
    assert label == "round 2"


def test_a_click_sorts_the_clients_both_ways(driver: Any, page: Path) -> None:
    open_page(driver, page, DESKTOP)
    table = driver.find_element("css selector", "#clients ~ .wide table")
    head = next(h for h in table.find_elements("css selector", "th button") if "after" in h.text)

    def order() -> list[str]:
        rows = table.find_elements("css selector", "tbody tr")
        return [row.find_element("css selector", "td").text for row in rows]

    assert order() == list("01234567")
    head.click()
    assert order() == ["0", "3", "6", "1", "4", "7", "2", "5"]  # by (3 · client) mod 8
    head.click()
    assert order() == ["5", "2", "7", "4", "1", "6", "3", "0"]


def test_values_are_shown_under_the_pointer(driver: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains

    open_page(driver, page, DESKTOP)
    tip = "return document.querySelector('.tip').textContent"
    chart = driver.find_element("css selector", "#accuracy svg")
    ActionChains(driver).move_to_element(chart).perform()
    assert "global model: " in driver.execute_script(tip)
    cell = driver.find_element("css selector", "#conflict rect.cell")
    ActionChains(driver).move_to_element(cell).perform()
    assert driver.execute_script(tip) == "MoE layer 0, expert 0\n30.0 %"


def test_small_numbers_are_written_as_multiples_of_a_power_of_ten(
    driver: Any, tmp_path: Path
) -> None:
    entry = line(1)
    entry["diagnostics"] = {"kappa": [[0.0024, 0.0, 0.0011, 0.0]] * 2}
    open_page(driver, write_report([write_run(tmp_path / "run", [line(0), entry])]), DESKTOP)
    shown = "#kappa rect.cell + text"
    texts = "return [...document.querySelectorAll(arguments[0])].map(t => t.textContent)"
    assert driver.execute_script(texts, shown)[:4] == ["2.4", "0.0", "1.1", "0.0"]
    assert "times 10^-3" in driver.find_element("css selector", "#kappa .scale").text
    assert faults(driver) == []


def test_a_desk_shows_every_column_of_the_clients(driver: Any, page: Path) -> None:
    open_page(driver, page, DESKTOP)
    room = "const [box] = arguments; return [box.scrollWidth, box.clientWidth]"
    table = driver.find_element("css selector", "#clients ~ .wide")
    needed, there = driver.execute_script(room, table)
    assert needed <= there


def test_the_theme_can_be_switched(driver: Any, page: Path) -> None:
    open_page(driver, page, DESKTOP)
    driver.execute_script("sessionStorage.clear()")
    driver.find_element("css selector", "#theme").click()
    theme = "return document.documentElement.dataset.theme"
    assert driver.execute_script(theme) == "dark"
    driver.refresh()
    assert driver.execute_script(theme) == "dark"
    driver.execute_script("sessionStorage.clear()")


def test_hostile_text_is_only_text(driver: Any, tmp_path: Path) -> None:
    open_page(driver, write_report([hostile_run(tmp_path / "a")]), DESKTOP)
    assert ready(driver)
    assert faults(driver) == []  # an alert would have stopped this call, a policy would have logged
    assert driver.execute_script("return document.images.length") == 0


def test_hostile_names_of_rows_fit_and_are_told_apart(driver: Any, tmp_path: Path) -> None:
    names = ("[x]</script><b>$y$\x1b\u202e", "x" * 120 + "A", "x" * 120 + "B")
    runs = [
        write_run(tmp_path / f"run {number}", [line(0), line(1)], scheme=name)
        for number, name in enumerate(names)
    ]
    page = write_report(runs, tmp_path / "both [x] $y$\u202e")
    for size in (PHONE, DESKTOP):
        open_page(driver, page, size)
        assert ready(driver)
        assert faults(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
        shown = driver.execute_script(
            "return [...document.querySelectorAll('#final-0 svg text')].map(t => t.textContent)"
        )
        assert [text[0] + text[-1] for text in shown[-3:]] == ["[e", "xA", "xB"]
    legend = driver.find_elements("css selector", "#accuracy-0 .legend span")
    assert [item.text for item in legend] == [r"[x]</script><b>$y$\x1b\u202e", *names[1:]]
    assert driver.title == r"both [x] $y$\u202e · fedmoe"


def test_runs_side_by_side(driver: Any, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{scheme}-{seed}", [line(0), line(1), line(2)],
                  scheme=scheme, seed=seed)
        for scheme in ("fedavg", "fcmoe") for seed in (1, 2)
    ]  # fmt: skip
    page = write_report(runs, tmp_path / "both")
    for size in (PHONE, DESKTOP):
        open_page(driver, page, size)
        assert ready(driver)
        assert faults(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert driver.execute_script("return document.querySelectorAll('figure .plot svg').length") == 4
    legend = driver.find_elements("css selector", "#accuracy-0 .legend span")
    assert [item.text for item in legend] == ["fedavg", "fcmoe"]
