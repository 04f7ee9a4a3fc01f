"""The pages in a real browser, at the widths of a phone and of a desk, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
        driver.execute_script("return document.querySelectorAll('figure .plot svg').length") == 11
    )
    shot = Image.open(browser.screenshot(driver, tmp_path / "page.png")).convert("L")
    assert shot.size[0] == size[0]
    assert shot.size[1] > 1500
    assert (shot.getpixel((5, 5)) < 80) == dark


def cells(driver: Any, name: str) -> list[str]:
    """What a map says of each of its cells, to ears and under the pointer."""
    script = """return [...document.querySelectorAll(arguments[0])]
      .map(cell => cell.getAttribute("aria-label"))"""
    return driver.execute_script(script, f"#{name} .layer_0_marks path")


def move(driver: Any, name: str, place: int) -> str:
    """Put a map's slider at a place, as a reader does; return what it then says."""
    script = """
      const slider = document.querySelector(`#${arguments[0]} input[type=range]`);
      slider.value = arguments[1];
      slider.dispatchEvent(new Event("input"));
      const said = slider.parentElement.querySelector("output").textContent;
      // Vega draws in a later turn.
      setTimeout(() => arguments[2](said), 100);"""
    return driver.execute_async_script(script, name, place)


def test_the_slider_moves_the_heat_map(driver: Any, page: Path) -> None:
    open_page(driver, page, DESKTOP)
    last = cells(driver, "routing-layers")
    assert len(last) == 16
    # Eight experts, one of which got ten tokens of seventeen.
    assert last[3] == "MoE layer 0, expert 3\n58.8 %"
    assert [i for i, text in enumerate(last) if text.endswith("58.8 %")] == [3, 11]
    assert move(driver, "routing-layers", 0) == "round 1"
    first = cells(driver, "routing-layers")
    assert [i for i, text in enumerate(first) if text.endswith("58.8 %")] == [1, 9]
    # In round r of three each client trained each expert in r of its 4 steps.
    assert move(driver, "trained", 3) == "all rounds"
    assert {text.split("\n")[1] for text in cells(driver, "trained")} == {"50.0 %"}
    assert move(driver, "trained", 0) == "round 1"
    assert {text.split("\n")[1] for text in cells(driver, "trained")} == {"25.0 %"}
    assert cells(driver, "conflict")[1] == "MoE layer 0, expert 1\nno number"
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
    browser.wait_until_drawn(driver)
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
    tip = "return document.querySelector('.vg-tooltip.visible')?.textContent"
    for place, start in (
        ("#accuracy svg .mark-rect path[aria-label]", "round 0\n"),
        ("#conflict .layer_0_marks path", "MoE layer 0, expert 0\n30.0 %"),
    ):
        found = driver.find_element("css selector", place)
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        ActionChains(driver).move_to_element(found).perform()
        assert str(driver.execute_script(tip)).startswith(start)
    assert faults(driver) == []


def test_a_legend_hides_a_line_by_keyboard(driver: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(driver, page, DESKTOP)
    button = driver.find_elements("css selector", "#accuracy .legend button")[-1]
    assert button.text == "global model"
    lines = """const done = arguments[0]; setTimeout(() => done([...document.querySelectorAll(
      "#accuracy .mark-line path")].map(each => each.getAttribute("opacity"))), 100)"""
    before = driver.execute_async_script(lines)
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "false"
    hidden = driver.execute_async_script(lines)
    assert [pair for pair in zip(before, hidden, strict=True) if pair[0] != pair[1]] == [
        (before[-1], "0")
    ]
    button.send_keys(Keys.SPACE)
    assert driver.execute_async_script(lines) == before


def test_small_numbers_are_written_as_multiples_of_a_power_of_ten(
    driver: Any, tmp_path: Path
) -> None:
    entry = line(1)
    entry["diagnostics"] = {"kappa": [[0.0024, 0.0, 0.0011, 0.0]] * 2}
    open_page(driver, write_report([write_run(tmp_path / "run", [line(0), entry])]), DESKTOP)
    texts = "return [...document.querySelectorAll(arguments[0])].map(t => t.textContent)"
    shown = driver.execute_script(texts, "#kappa svg text")
    assert [text for text in shown if "." in text][:4] == ["2.4", "0.0", "1.1", "0.0"]
    assert any("times 10^-3" in text for text in shown)
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
        ends = {text[0] + text[-1] for text in shown}
        assert {"[e", "xA", "xB"} <= ends
    legend = driver.find_elements("css selector", "#accuracy-0 .legend button")
    first, second, third = [item.text for item in legend]
    assert first == r"[x]</script><b>$y$\x1b\u202e"
    assert (second[-1], third[-1]) == ("A", "B")
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
    legend = driver.find_elements("css selector", "#accuracy-0 .legend button")
    assert [item.text for item in legend] == ["fedavg", "fcmoe"]
    room = "const [box] = arguments; return [box.scrollWidth, box.clientWidth]"
    for table in driver.find_elements("css selector", ".wide"):
        needed, there = driver.execute_script(room, table)
        assert needed <= there  # no table is cut off at a desk
