"""The written page: whole, escaped, without network, and of bounded size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedmoe_app import ResultsError
from fedmoe_app.report.page import State
from fedmoe_app.report.run_page import run_page, write_run_page
from tests.conftest import flat_config
from tests.report.html.runs import line, write_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


class Reader(HTMLParser):
    """Collects tags with attributes, and the texts of script and style elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in self.texts and self.cdata_elem:
            self.texts[self.tags[-1][0]].append(data)
        else:
            self.shown += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def hostile_run(path: Path) -> Path:
    entry = line(1) | {
        "metric": HOSTILE,
        "failures": [{"who": HOSTILE, "reason": HOSTILE}],
    }
    folder = write_run(
        path,
        [line(0) | {"metric": HOSTILE}, entry],
        **{"data.label-names": HOSTILE, "scheme": HOSTILE},
    )
    sample = {"round": 1, "prompt": HOSTILE, "expected": HOSTILE, "generated": HOSTILE}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return folder


def data_of(reader: Reader) -> dict[str, Any]:
    return json.loads(reader.texts["script"][0])


def test_the_page_of_a_run_has_everything(tmp_path: Path) -> None:
    path = write_run_page(write_run(tmp_path / "my-run", [line(0), line(1), line(2)]))
    assert path == tmp_path / "my-run" / "report.html"
    reader = Reader(path.read_text())
    ids = {attributes.get("id") for _, attributes in reader.tags}
    assert {"summary", "curves", "clients", "experts", "failures", "rounds", "config"} <= ids
    data = data_of(reader)
    points = data["charts"]["accuracy"]["spec"]["data"]["values"]
    assert [(p["x"], p["y"]) for p in points if p["s"] == 2] == [(0, 0.125), (1, 0.25), (2, 0.375)]
    assert {"routing-layers", "routing-clients", "trained"} <= data["charts"].keys()
    drawn = {each["data-chart"] for each in reader.named("figure") if "data-chart" in each}
    assert drawn == data["charts"].keys()
    assert {c["cube"] for c in data["charts"].values()} - {None} <= data["cubes"].keys()
    assert [p.name for p in path.parent.glob(".*")] == []


def test_nothing_that_users_wrote_becomes_markup(tmp_path: Path) -> None:
    reader = Reader(write_run_page(hostile_run(tmp_path / "a")).read_text())
    assert len(reader.named("script")) == 3  # data, Vega and the page's own
    assert reader.named("img") == []
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert reader.shown.count("{{ 7 * 7 }}") >= 6  # shown as it is, not worked out
    accuracy = data_of(reader)["charts"]["accuracy"]["spec"]["layer"][0]["encoding"]
    assert accuracy["y"]["axis"]["title"] == HOSTILE


def test_the_page_loads_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    text = write_run_page(hostile_run(tmp_path / "a")).read_text()
    reader = Reader(text)
    assert not any("src" in attributes for _, attributes in reader.tags)
    links = [each["href"] for each in (*reader.named("a"), *reader.named("link"))]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert "@import" not in reader.texts["style"][0]
    assert "url(" not in reader.texts["style"][0]
    (policy,) = (m["content"] for m in reader.named("meta") if "Policy" in str(m))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for kind in ("script", "style"):
        hashes = [
            base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
            for source in reader.texts[kind][kind == "script" :]
        ]
        assert allowed[f"{kind}-src"] == " ".join(f"'sha256-{digest}'" for digest in hashes)


@pytest.mark.parametrize("kind", ["running", "complete", "failed", "incomplete"])
def test_only_a_running_page_loads_itself_again(tmp_path: Path, kind: Any) -> None:
    text = run_page(tmp_path, flat_config(), [line(0)], State(kind, "a note"))
    assert ('http-equiv="refresh" content="15"' in text) == (kind == "running")
    assert f'<span class="state {kind}">{kind}</span>' in text
    assert "a note" in text


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [line(0), line(1)], **{"num-server-rounds": 4})
    assert "after round 1 of 4" in write_run_page(folder).read_text()


def test_the_page_of_a_large_run_stays_small(tmp_path: Path) -> None:
    lines = [line(0), *(line(i, tuple(range(60)), 4, 32) for i in range(1, 41))]
    text = run_page(tmp_path, flat_config(), lines, State("complete", ""))
    assert len(text) < 3_000_000
    assert re.search(r"Shown to keep this page small: \d+ of 40 rounds", text)


def test_lines_that_lack_figures_are_an_error_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"nameless.*KeyError.*clients"):
        run_page(tmp_path / "nameless", flat_config(), [{"round": 0}], State("complete", ""))
    empty = write_run(tmp_path / "a", [line(0)])
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(ResultsError, match="nothing to report yet"):
        write_run_page(empty)


def test_infinite_losses_leave_a_gap(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [line(0), line(1) | {"loss": float("inf")}])
    data = data_of(Reader(write_run_page(folder).read_text()))
    points = data["charts"]["loss"]["spec"]["data"]["values"]
    assert [(p["x"], p["y"]) for p in points if p["s"] == 2] == [(0, 2.0)]
