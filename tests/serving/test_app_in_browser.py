"""The web app as people see it, in a real browser: headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

from test_app import folder, url  # noqa: E402, F401 - fixtures of theirs

from hf_coop.demo import CLASSNAMES  # noqa: E402

SCREENSHOTS = os.environ.get("HF_COOP_SCREENSHOTS")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def page_of(browser: Any, url: str, **options: Any) -> Any:  # noqa: F811
    """The app in a browser of its own; dialogs, such as `alert` of injected markup, fail the test."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(30_000)
    page.dialogs = []
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(url)
    page.locator("#classify").wait_for()
    return page


def keep(page: Any, name: str) -> None:
    """A picture to look at, where `HF_COOP_SCREENSHOTS` names a folder."""
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS, f"{name}.png"), full_page=True)


def drop(page: Any, *files: Path) -> None:
    upload(page, "#images", *files)


def upload(page: Any, place: str, *files: Path) -> None:
    page.locator(place).wait_for()
    page.wait_for_timeout(500)  # until the page listens to its input
    with page.expect_response(lambda response: "/upload" in response.url):
        page.locator(f"{place} input[type=file]").set_input_files([str(file) for file in files])


def test_classify_pick_and_change_names(browser, url, folder):  # noqa: F811
    page = page_of(browser, url, viewport={"width": 1280, "height": 900})
    drop(page, folder / "examples" / "0.png", folder / "examples" / "1.png")
    page.locator("#results .result").nth(1).wait_for()
    assert page.locator("#results .learned .bar").count() == 10
    keep(page, "classify")
    page.locator("#examples button img").nth(2).click()
    page.locator('#results img[alt="2.png"]').wait_for()
    page.locator("#names textarea").fill("one\n<img src=x onerror=alert(1)>")
    page.locator("#classify").click()
    page.locator("#results .bar", has_text="<img src=x onerror=alert(1)>").first.wait_for()
    assert page.locator("#results .learned .bar").count() == 4
    assert page.dialogs == []
    keep(page, "names")
    page.context.close()


def test_a_specific_prompt_says_why_not(browser, url, folder):  # noqa: F811
    page = page_of(browser, url)
    page.locator("#prompt input").click()
    page.get_by_role("option", name="specific").click()
    sync_api.expect(page.locator("#names textarea")).to_have_value("\n".join([*CLASSNAMES[:8], "two lines"]))
    page.locator("#names textarea").fill("one\ntwo")
    drop(page, folder / "examples" / "0.png")
    page.get_by_text("each context was learned for its own class").wait_for()
    keep(page, "specific")
    page.context.close()


def test_two_browsers_and_learning(browser, url, folder):  # noqa: F811
    """One learns, on a phone's screen in the dark, while the other classifies; only the one has the prompt then."""
    phone = page_of(browser, url, viewport={"width": 390, "height": 800}, color_scheme="dark")
    other = page_of(browser, url)
    phone.get_by_role("tab", name="Learn").click()
    upload(phone, "#archive", folder / "digits.zip")
    phone.locator("#archive", has_text=" KB").wait_for()
    phone.locator("#learn").click()
    phone.locator("#status", has_text="Iteration").wait_for()
    drop(other, folder / "examples" / "3.png")
    other.locator("#results .result").wait_for()
    phone.locator("#status", has_text="Accuracy").wait_for()
    keep(phone, "learned")
    with phone.expect_download() as downloading:
        phone.locator("#download").click()
    assert downloading.value.suggested_filename.endswith(".zip")
    phone.get_by_role("tab", name="Classify").click()
    drop(phone, folder / "examples" / "0.png")
    phone.locator("#results .result").wait_for()
    assert phone.locator("#prompt input").input_value() == "learned here"
    keep(phone, "phone")
    other.locator("#prompt input").click()
    assert other.get_by_role("option").count() == 2
    phone.context.close()
    other.context.close()
