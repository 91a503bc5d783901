"""Whatever a string holds, it stays text inside a page."""

import json
import re
from html import unescape

from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.pages.html import script_json
from lenvm_rl.pages.view import page_html
from tests.pages.view_pages import EVIL, page

# Surrogates too: a prompt file may hold "\ud83d" alone.
ANY_TEXT = st.text(st.characters(codec=None))


@given(ANY_TEXT)
def test_json_reads_back_and_holds_no_markup(text):
    written = script_json({"text": text})
    assert json.loads(written) == {"text": text}
    assert written.isascii() and not set("<>&") & set(written)


def test_line_separators_and_infinities():
    written = script_json(["\u2028\u2029", float("nan"), float("inf")])
    assert written == '["\\u2028\\u2029",null,null]'


def test_the_page_is_one_file_that_asks_for_nothing():
    html = page_html(page(["a", EVIL, "<eos>"]))
    assert html.count("</script>") == 2  # the data and the page's own
    assert "window.executed=1</script>" not in html
    assert not re.search(r'(?:src|href)="(?!data:)', html) and "@import" not in html
    policy = unescape(html)
    assert "default-src 'none'" in policy and "'sha256-" in policy
    assert json.loads(_data_of(html))["responses"][0]["tokens"][1] == EVIL


def _data_of(html):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found
    return found[1]
