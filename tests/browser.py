"""A real browser for tests of pages, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def tab(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """`path` in a tab 1280 pixels wide, and what it requested so far besides data in itself.

    Skips without a browser. Fails at the end if the page reported an error, a picture did not
    decode or the page is wider than its window.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests: list[str] = []
        errors: list[str] = []
        page.on("request", lambda r: r.url.startswith("data:") or requests.append(r.url))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        yield page, requests
        undecoded = "all => all.filter(x => !x.naturalWidth).map(x => x.src.slice(0, 80))"
        assert page.eval_on_selector_all("img", undecoded) == []
        # Wide tables scroll by themselves.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert errors == []
