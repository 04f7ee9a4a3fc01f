"""The pictures of docs/report.md: pages of a real run and of a comparison, in Chromium.

Run it as ``python -m benchmarks.report_pictures``; it needs the dev extra and Debian's packages
chromium and chromium-driver. Without RUN it trains FedAlign-MoE on 8 clients first (a minute), and
without FOLDER it compares four schemes over three seeds (a quarter of an hour).

    python -m benchmarks.report_pictures --run RUN --comparison FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedmoe_app import compare_schemes, default_run_config, run_in_process
from fedmoe_app.cli.report import write_report
from tests.report.html import browser

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = REPOSITORY / "docs" / "images"
WIDTH, HEIGHT = 1280, 900
CLIENTS = 8
SMALL = {"data.max-train-examples": 3000, "data.max-test-examples": 600}


def train(folder: Path) -> Path:
    """Train what the picture shows, and return its result folder."""
    own = {"scheme": "fedalign", "num-server-rounds": 5, "data.alpha": 0.3}
    flat = default_run_config() | SMALL | own
    return run_in_process(flat | {"output-dir": str(folder), "run-name": "fedalign"}, CLIENTS)


def compare(folder: Path) -> Path:
    """Compare what the picture shows, and return the comparison's folder."""
    schemes = ("fedavg", "fcmoe", "fedalign", "hfedmoe")
    config = SMALL | {"num-server-rounds": 4}
    output = folder / "comparison"
    return compare_schemes(
        schemes, alphas=(0.1,), clients=CLIENTS, config=config, output=output
    ).path


def picture(driver: Any, page: Path, anchor: str, name: str, dark: bool = False) -> Path:
    """Photograph a window of the page from an element on."""
    browser.open_page(driver, page, (WIDTH, HEIGHT), dark)
    driver.execute_script("document.getElementById(arguments[0]).scrollIntoView()", anchor)
    return browser.screenshot(driver, IMAGES / name, whole=False)


def main() -> None:
    """Write the pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="result folder of a run that is there")
    parser.add_argument("--comparison", type=Path, help="folder of fedmoe compare")
    given = parser.parse_args()
    if why := browser.missing():
        raise SystemExit(f"no pictures: {why}")
    with TemporaryDirectory() as folder, browser.chromium() as driver:
        runs = Path(folder)
        page = write_report([given.run or train(runs)])
        print(picture(driver, page, "curves", "report-curves.png"))
        print(picture(driver, page, "experts", "report-experts.png", dark=True))
        page = write_report([given.comparison or compare(runs)])
        print(picture(driver, page, "curves", "report-comparison.png"))


if __name__ == "__main__":
    main()
