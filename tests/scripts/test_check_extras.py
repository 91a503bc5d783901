"""What an extra brings is read off metadata; the rest of the environment is hidden."""

from scripts import check_extras


def test_an_extra_brings_what_its_requirements_require():
    base, evals = check_extras.closure("base"), check_extras.closure("evals")
    assert {"torch", "transformers", "tyro", "tokenizers", "pyarrow", "rich"} <= base
    assert not {"scipy", "matplotlib", "pytest", "verl", "vllm", "lenvm-rl"} & base
    assert base < evals and {"scipy", "matplotlib", "math-verify"} <= evals


def test_every_extra_of_users_is_checked():
    project = check_extras.tomllib.loads((check_extras.ROOT / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"]) - {"dev"}
    assert extras == set(check_extras.COMMANDS)


def test_what_it_does_not_bring_is_hidden_by_module_and_by_name():
    modules, names = check_extras.hidden(check_extras.closure("base"))
    assert {"pytest", "scipy", "matplotlib"} <= set(modules)
    assert {"pytest", "scipy", "matplotlib"} <= set(names)
    assert not {"torch", "transformers", "lenvm_rl", "reward_fns", "yaml"} & set(modules)


def test_a_command_that_needs_more_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(check_extras.COMMANDS, "base", [["recipes"]])
    monkeypatch.setitem(check_extras.IMPORTS, "base", ["scipy.stats"])
    assert not check_extras.check("base", tmp_path)
    printed = capsys.readouterr().out
    assert "No module named 'scipy'" in printed and "base: FAILED" in printed
    monkeypatch.setitem(check_extras.IMPORTS, "base", ["pyarrow"])
    (tmp_path / "again").mkdir()
    assert check_extras.check("base", tmp_path / "again")
