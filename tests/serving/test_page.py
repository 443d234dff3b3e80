"""The page: nothing of it comes from elsewhere, and in a headless Chromium it shows a hand-over.

The browser is the one that CHROMIUM names, driven by the package playwright; without either the
tests that need it are skipped.
"""

import os
import re
import urllib.request
from contextlib import contextmanager

import pytest

from offload_jax.cloud.protocol import Answer


@contextmanager
def opened(url):
    """The page, in a browser; no script may fail, nothing be refused."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or pytest.skip("CHROMIUM names no browser")
    flags = ["--no-sandbox", "--disable-gpu", "--single-process", "--no-zygote"]
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=flags)
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if "Policy" in said.text else None)
        page.goto(url)
        page.wait_for_selector("#model:has-text('pair')")
        yield page
        browser.close()
        assert errors == []


def test_nothing_comes_from_elsewhere(fakes):
    with (
        fakes.serving(fakes.FakeEngine(), fakes.FakeCloud()) as (_, url),
        urllib.request.urlopen(url) as response,
    ):
        text, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert not re.search(r"https?://|@import|src=|innerHTML|eval\(", text)


def test_it_shows_the_work_the_hand_over_and_the_receipt(fakes):
    engine, hostile = fakes.FakeEngine(fakes.CALL, p=0.75), "<img src=x onerror=alert(1)>"
    cloud = fakes.FakeCloud(Answer(f"So: <answer> {hostile} </answer>", None, 11, 5, 0.002, 0.1))
    with fakes.serving(engine, cloud) as (_, url), opened(url) as page:
        page.fill("#question", "What?")
        page.click("#ask")
        page.wait_for_selector("#decision:has-text('Answered by the cloud')")
        assert cloud.asked == ["What?"]
        assert "3 + 7 = 10" in page.inner_text("#work")
        assert "So:" in page.inner_text("#after") and "So:" not in page.inner_text("#work")
        assert page.inner_text("#answer") == hostile  # shown, not obeyed
        assert re.search(r"served by\s+cloud", page.inner_text("#receipt"))
        page.wait_for_selector("#account tr:has-text('by cloud'):has-text('1')")
        assert re.search(r"dollars\s+0.002", page.inner_text("#account"))


def test_a_question_may_be_for_the_device_alone(fakes):
    engine, cloud = fakes.FakeEngine(fakes.CALL), fakes.FakeCloud()
    with fakes.serving(engine, cloud) as (_, url), opened(url) as page:
        page.check("#device_only")
        page.click("#ask")
        page.wait_for_selector("#decision:has-text('Answered by the device')")
        assert page.inner_text("#answer") == "3 + 7" and not cloud.asked


def test_an_error_is_told_and_stop_gives_up_the_question(fakes):
    engine = fakes.FakeEngine(hold=True)
    with fakes.serving(engine, fakes.FakeCloud()) as (_, url), opened(url) as page:
        page.click("#ask")
        assert engine.begun.wait(10)
        page.click("#stop")
        page.wait_for_selector("#decision:has-text('Stopped')")
        assert engine.cancelled.wait(10)
        page.fill("#question", " ")
        page.click("#ask")
        page.wait_for_selector("#decision:has-text('The question is empty')")
