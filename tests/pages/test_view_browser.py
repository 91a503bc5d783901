"""The viewer in a real browser: it opens from disk, links curve and text, and runs nothing else.

Waiting is done with `expect`: the page's policy forbids what `wait_for_function` does, evaluating
strings.
"""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from lenvm_rl.pages.view import write_page
from tests.pages.view_pages import EVIL, page

pytestmark = pytest.mark.slow

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WORDS = [" one", " two", EVIL, ".\n", "    x", " wait", " so", " end", "<eos>"]


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "there is no Chromium: scripts/setup.sh --browser installs it"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open data as a page from disk; afterwards it must have asked for nothing and failed nowhere.

    Violations of the page's own policy are reported on the console, so they count as failures.
    """
    contexts, requests, failures = [], [], []

    def open_page(data, **options):
        write_page(data, tmp_path / "page.html")
        context = browser.new_context(viewport={"width": 1300, "height": 850}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.on("console", lambda message: failures.append(message.text))
        tab.goto((tmp_path / "page.html").as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert failures == []


def test_markup_in_a_response_is_text_and_does_not_run(opened):
    tab = opened(page(WORDS))
    assert tab.locator(".text").text_content() == "".join(WORDS)
    assert EVIL in tab.locator("#prompt pre").text_content()
    assert EVIL in tab.locator("h1").text_content()
    assert tab.evaluate("window.executed") is None
    assert tab.locator("img").count() == 0 and tab.locator("script").count() == 2


def test_a_token_under_the_pointer_shows_its_numbers_and_its_place_on_the_curve(opened):
    tab = opened(page(WORDS))
    before = canvas(tab)
    tab.locator(".t").nth(5).hover()
    expect(tab.locator("#context b")).to_have_text("·wait")
    # Before the token 4 + 10 remain by the model, after it 3; it scores gamma (u(3) - u(13)).
    line = tab.locator("#numbers tr").nth(1).inner_text().split()
    assert line[:3] == ["model-0", "14.0", "3.0"] and line[-2] == "−10.0"
    score = 0.99 * (0.99**13 - 0.99**3)
    assert float(line[3].replace("−", "-")) == pytest.approx(score, abs=1e-3)
    assert tab.locator(".t.hot").count() == 1 and canvas(tab) != before
    tab.mouse.move(5, 5)
    expect(tab.locator(".t.hot")).to_have_count(0)
    assert canvas(tab) == before


def test_a_distribution_is_drawn_as_a_fan(opened):
    data = page(WORDS)
    narrow = opened(data)
    before = canvas(narrow, "curve")
    left = [len(WORDS) - i for i in range(len(WORDS))]
    fan = [[n // 2 for n in left], [n - 1 for n in left], [n + 5 for n in left], [1200] * len(left)]
    data["responses"][0]["series"][0]["fan"] = fan
    tab = opened(data)
    assert canvas(tab, "curve") != before
    tab.locator(".t").nth(5).hover()
    expect(tab.locator("#numbers tr").nth(1)).to_contain_text("2 – 1,200")
    expect(tab.locator("#numbers tr").nth(0)).to_contain_text("90 % within")


def test_the_curve_under_the_pointer_lights_its_token(opened):
    tab = opened(page(WORDS))
    box = tab.locator("#cross").bounding_box()
    left, right = box["x"] + 62, box["x"] + box["width"] - 14  # the plot within its margins
    tab.mouse.move(left + (right - left) * 7.5 / len(WORDS), box["y"] + 60)
    expect(tab.locator(".t.hot")).to_have_text("end")
    tab.mouse.click(left + (right - left) * 1.5 / len(WORDS), box["y"] + 60)
    tab.mouse.move(5, 5)  # a clicked token stays
    expect(tab.locator(".t.hot")).to_have_text("two")
    tab.keyboard.press("ArrowRight")
    expect(tab.locator(".t.hot")).to_contain_text("</script>")
    assert tab.locator(".t.hot").count() == 1


def test_length_tokens_follow_the_slider(opened):
    tab = opened(page(WORDS))
    assert tab.locator(".t.down").all_text_contents() == [" wait"]
    assert tab.locator(".t.up").count() == 0 and "1 marked" in tab.locator("#marked").inner_text()
    assert tab.locator("#shifts button").all_text_contents()[0].startswith("·wait")
    # The last token is right, but for rounding to 1e-6: at the slider's least it stays unmarked.
    tab.locator("#threshold").fill("0")
    expect(tab.locator("#limit")).to_have_text("0.00009")  # 0.0919 / 10 / 100
    assert tab.locator(".t.down").all_text_contents() == [" wait"]


def test_two_models_stand_side_by_side(opened):
    tab = opened(page(WORDS, models=2))
    assert tab.locator(".text").count() == 2
    tab.locator(".column").nth(1).locator(".t").nth(5).hover()
    tab.wait_for_selector(".t.hot")
    assert tab.locator(".t.hot").all_text_contents() == [" wait", " wait"]
    rows = tab.locator("#numbers tr").all_inner_texts()
    assert rows[1].split()[:2] == ["model-0", "14.0"] and rows[2].split()[:2] == ["model-1", "24.0"]
    tab.locator("#columns").uncheck()
    assert tab.locator(".text").count() == 1


def test_responses_are_switched_in_the_list_and_by_key(opened):
    data = page(WORDS)
    other = page(["x", " y", "<eos>"])["responses"][0] | {"id": "p2", "ended": False}
    other["series"][0]["score"][-1] = None
    tab = opened(data | {"responses": [*data["responses"], other]})
    tab.locator("#list button").nth(1).click()
    assert tab.locator(".text").text_content() == "x y<eos>"
    assert "Truncated by the token limit" in tab.locator("#notes").inner_text()
    tab.keyboard.press("k")
    assert tab.locator(".text").text_content() == "".join(WORDS)


def test_thirty_thousand_tokens_open_and_answer(opened):
    count = 30_000
    words = [f" word{i}" if i % 40 else f" line{i}.\n" for i in range(count - 1)] + ["<eos>"]
    tab = opened(page(words))
    assert tab.locator(".t").count() == count
    box = tab.locator("#cross").bounding_box()
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + 60)
    tab.mouse.move(5, 5)
    tab.wait_for_selector(".t.hot")
    hot = tab.locator(".t.hot")
    assert abs(hot.evaluate("e => e.index") - count / 2) < count / 20
    assert hot.evaluate("e => e.getBoundingClientRect().top") < 850  # the text went there


def test_it_is_drawn_in_the_dark_too(opened):
    tab = opened(page(WORDS), color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    tab.locator("#theme").click()
    tab.locator("#theme").click()
    assert tab.locator("#theme").inner_text() == "theme: dark"
    tab.locator("#theme").click()
    tab.locator("#theme").click()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 248)"


def canvas(tab, name="cross"):
    return tab.evaluate(f"document.getElementById('{name}').toDataURL()")
