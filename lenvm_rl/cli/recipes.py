"""`lenvm recipes`: where are the experiments that come with the package?"""

from __future__ import annotations

from typing import Annotated

import typer

from lenvm_rl.cli.app import app, console


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print the folder of this one alone.")] = None,
) -> None:
    """List the recipes and their folder, or print the folder of one, for scripts.

    Examples:

    `lenvm recipes`

    `python -m verl.trainer.main_ppo --config-path "$(lenvm recipes pretrain)" --config-name demo`

    `"$(lenvm recipes grpo_length)"/run.sh demo`
    """
    from rich.table import Table

    from lenvm_rl.demo.launch import recipes_dir

    root = recipes_dir()
    folders = sorted(path for path in root.iterdir() if (path / "README.md").is_file())
    if name is not None:
        known = {folder.name: folder for folder in folders}
        if name not in known:
            raise ValueError(f"there is no recipe {name!r}: {', '.join(known)}.")
        print(known[name])
        return
    table = Table("recipe", "what", "configurations", box=None, pad_edge=False)
    for folder in folders:
        title = (folder / "README.md").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        configs = sorted(path.stem for path in folder.glob("*.yaml"))
        table.add_row(folder.name, title, ", ".join(configs))
    console.print(table)
    print(root)
