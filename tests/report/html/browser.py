"""A headless Chromium for pages on the disk; tests that need it are skipped where it is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PHONE, DESKTOP = (390, 844), (1280, 900)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def missing() -> str:
    """Return why there is no browser to test with; empty when there is one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed (pip install '.[dev]')"
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt-get install chromium chromium-driver)"
    return ""


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser with a profile of its own; it and its driver are ended on leaving."""
    from selenium import webdriver

    with TemporaryDirectory(prefix="fedmoe-chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(str(shutil.which("chromedriver")), log_output=os.devnull)
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()


def open_page(driver: Any, page: Path, size: tuple[int, int], dark: bool = False) -> None:
    """Open a page of the disk in a window of ``size`` CSS pixels, as a light or dark system."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page.as_uri())
    wait_until_drawn(driver)


def wait_until_drawn(driver: Any) -> None:
    """Wait for the end of the page's script, which draws chart by chart."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = "return document.documentElement.dataset.ready === 'yes'"
    WebDriverWait(driver, 60, 0.1).until(lambda _: driver.execute_script(script))


def screenshot(driver: Any, path: Path, whole: bool = True) -> Path:
    """Write a picture of the page, from its top to its end if ``whole``."""
    import base64

    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole}
    )
    path.write_bytes(base64.b64decode(shot["data"]))
    return path
