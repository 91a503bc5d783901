"""HTML pages that open from disk, safe for whatever strings their data holds.

Text of models and users goes through JSON in a block that no browser executes, or through jinja2's
escaping; the page's own script is allowed by its hash and nothing else is: no other script, no
request to a network, even if an escape were missing somewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from lenvm_rl.rollouts.atomic import finite

# json.dumps writes ASCII, so U+2028, U+2029 and lone surrogates are escaped already.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def script_json(data: Any) -> Markup:
    """JSON for a `<script type="application/json">` block: no string in it can end the block.

    `<`, `>`, `&` and everything beyond ASCII are written as `\\uXXXX`, which JSON.parse undoes;
    NaN and infinities become null.
    """
    text = json.dumps(finite(data), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.translate(_ESCAPES))


def render(template: str, *, styles: list[str], scripts: list[str], **values: Any) -> str:
    """One self-contained page from package templates.

    Args:
        template: name of the page; it gets `style`, `script`, `policy` and the values, which are
            escaped unless they are Markup.
        styles, scripts: names of CSS and JavaScript files, joined in this order.
    """
    script = "".join(f"\n{_source(name)}" for name in scripts)
    assert "</script" not in script.lower(), "a script may not end its own block"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if scripts else "'none'"
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup("\n".join(map(_source, styles))),
            script=Markup(script),
            policy=policy,
            **values,
        )
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("lenvm_rl.pages", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]
