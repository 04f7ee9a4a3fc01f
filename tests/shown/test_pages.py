"""Pages: what acts without being markup is visible, in texts and in the data of the script."""

from __future__ import annotations

import pytest

from fedmoe_app.report.page import State, render
from fedmoe_app.shown.pages import html_data, html_text
from tests.shown.hostile import ACTING, HOSTILE, ORDINARY


def test_white_space_stays_and_what_acts_does_not() -> None:
    assert html_text("a\n\tb\x1b\u202ec\r") == "a\n\tb\\x1b\\u202ec\\r"
    assert html_text(3) == 3
    assert html_text(None) is None
    for text in ORDINARY:
        assert html_text(text) == text


def test_every_text_of_the_data_is_looked_at() -> None:
    numbers = [1.5, None, 2]
    data = {"a": [{"b": ["x\x1b", 1]}, ("\u2028",)], "n": numbers, "t": True}
    shown = html_data(data)
    assert shown == {"a": [{"b": [r"x\x1b", 1]}, [r"\u2028"]], "n": numbers, "t": True}
    assert shown["n"] is numbers


@pytest.mark.parametrize("text", HOSTILE)
def test_a_whole_page_shows_the_text(text: str) -> None:
    content = {
        "metric": "accuracy", "summary": [], "advice": text, "partitions": [], "legend": text,
        "rows": {"headers": [text], "rows": [[{"text": text, "sort": text}]], "bad": []},
        "runs": {"headers": [], "rows": [], "bad": []},
        "failures": {"headers": [], "rows": [], "bad": []},
        "differing": {"headers": [], "rows": [], "bad": []}, "all_settings": [], "changed": [],
        "chosen": {"headers": [text], "rows": [[{"text": text, "sort": text}]], "bad": []},
    }  # fmt: skip
    page = render("comparison", text, State("failed", text), content, {"charts": {text: [text]}})
    assert not ACTING.search(page)
    assert page.count("</script>") == 3
    assert page.count("<b>") == 0
    assert "49" not in page.partition("<body>")[2].partition("<footer>")[0]  # {{ 7 * 7 }}
