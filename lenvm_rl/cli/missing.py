"""Which extra brings a package that a command wanted and did not find?"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires

_NAME = "lenvm-rl"


def what_is_missing(error: ModuleNotFoundError) -> str | None:
    """The sentence for a package that one of the extras names; None for any other.

    A package that an extra leaves out on this Python (verl from 3.13 on) is said to be so.
    """
    wanted = _canonical((error.name or "").partition(".")[0])
    extras = _extras_of(wanted)
    if not extras:
        return None
    extra, marker = extras[0]
    if "python_version" in marker:
        import sys

        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            f"the package {error.name!r} is not installed; the extra {extra!r} brings it where "
            f"{marker}, and this is Python {running}."
        )
    return (
        f"the package {error.name!r} is not installed; the extra {extra!r} brings it: "
        f'pip install ".[{extra}]" in a clone of {_NAME}.'
    )


def _extras_of(package: str) -> list[tuple[str, str]]:
    """(extra, the rest of its marker) of every extra that names `package`, in their order."""
    try:
        lines = requires(_NAME) or []
    except PackageNotFoundError:  # run from a folder, never installed
        return []
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        name = requirement
        for sign in "[<>=!~ (":
            name = name.partition(sign)[0]
        if _canonical(name) == package and "extra ==" in marker:
            extra = marker.partition("extra ==")[2].strip().split()[0].strip("\"')")
            rest = marker.replace(f"extra == '{extra}'", "").replace(f'extra == "{extra}"', "")
            found.append((extra, rest.strip().removeprefix("and").removesuffix("and").strip()))
    return found


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")
