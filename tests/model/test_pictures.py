"""LenVMs that see pictures: the policy's own trunk, exact positions and packing, refusals."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lenvm_rl.cli.commands import init
from lenvm_rl.model import LengthValueModel, pictures, save_checkpoint
from lenvm_rl.model.forward import iter_logits
from lenvm_rl.model.pictures import same_processor
from lenvm_rl.model.policy import check_processor
from lenvm_rl.model.training import Recipe, train
from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutWriter
from lenvm_rl.rollouts.duplicates import find_duplicates
from lenvm_rl.rollouts.parts import split_by_prompt
from tests.tiny import FORWARD, make_tokenizer
from tests.tiny_vision import (
    BEGIN,
    END,
    FAMILIES,
    PLACEHOLDER,
    make_processor,
    make_vision_policy,
    picture,
)

GAMMA = 0.97
PICTURES = [picture(0), picture(1, 56, 112), picture(2)]


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request, tmp_path_factory):
    return make_vision_policy(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return make_vision_policy("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


def make_model(path, **fields):
    torch.manual_seed(1)
    return LengthValueModel.from_policy(path, gamma=GAMMA, **fields).eval()


def media(*data):
    return {f"p{i}": pictures_of(data) for i, data in enumerate(data)}


def pictures_of(data):
    from lenvm_rl.rollouts.media import Picture

    return Picture("image/png", data)


def make_rows(model):
    """Rows with one picture, two, none."""
    reader, files = model.pictures, media(*PICTURES)
    rows = []
    for number, names in enumerate((["p0"], ["p1", "p2"], [])):
        ids = [9, 10, *(token for _ in names for token in (BEGIN, PLACEHOLDER, END)), 11]
        seen = [reader.see(name, files[name].data) for name in names]
        rows.append(
            Rollout(
                prompt_id=f"q{number}",
                sample_id=0,
                prompt_ids=reader.expand(ids, seen),
                response_ids=[12 + number] * (3 + 2 * number) + [1],
                finish_reason="stop",
                pictures=names or None,
                media=files,
            )
        )
    return rows


def outputs_of(model, rows):
    return {row.prompt_id: z for row, z in iter_logits(model, rows)}


def packed(model, rows):
    """Outputs at the states of rows that lie end to end in one row."""
    reader = model.pictures
    ids = [[*row.prompt_ids, *row.response_ids[:-1]] for row in rows]
    seen = [reader.see_all(row) for row in rows]
    places = [reader.positions(*both) for both in zip(ids, seen, strict=True)]
    if places[0] is None:
        places = [torch.arange(len(row)) for row in ids]
    given = pictures.stacked([picture for row in seen for picture in row])
    z = model.length_outputs(
        torch.tensor([sum(ids, [])]), position_ids=torch.cat(places, -1).unsqueeze(-2), **given
    )[0]
    parts = z.split([len(row) for row in ids])
    pairs = zip(rows, parts, strict=True)
    return {row.prompt_id: part[len(row.prompt_ids) - 1 :] for row, part in pairs}


def test_the_trunk_is_the_policys_with_tower_and_projector(policy):
    """Also where a checkpoint's names are those of the whole model alone."""
    model = make_model(policy)
    whole = AutoModelForImageTextToText.from_pretrained(policy).eval()
    own, wanted = model.model.state_dict(), whole.model.state_dict()
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)


def test_positions_are_those_that_transformers_gives(policy):
    model = make_model(policy)
    row = make_rows(model)[1]
    ids = torch.tensor([row.prompt_ids])
    seen = model.pictures.see_all(row)
    given = pictures.stacked(seen)
    kinds = (ids == PLACEHOLDER).int()
    whole = AutoModelForImageTextToText.from_pretrained(policy).eval()
    if "image_grid_thw" in given:
        given["mm_token_type_ids"] = kinds
    with torch.no_grad():
        wanted = whole.model(input_ids=ids, **given).last_hidden_state
        beside = model.pictures.beside([row.prompt_ids], [seen], width=ids.shape[1])
        got = model.model(input_ids=ids, **beside).last_hidden_state
    torch.testing.assert_close(got, wanted, atol=FORWARD, rtol=FORWARD)


def test_packed_padded_and_alone_are_the_same_and_so_are_gradients(policy):
    model = make_model(policy)
    rows = make_rows(model)
    together = outputs_of(model, rows)
    for row in rows:
        torch.testing.assert_close(
            outputs_of(model, [row])[row.prompt_id],
            together[row.prompt_id],
            atol=FORWARD,
            rtol=FORWARD,
        )
    gradients = []
    for run in (packed(model, rows), {r.prompt_id: packed(model, [r])[r.prompt_id] for r in rows}):
        for name, z in run.items():
            torch.testing.assert_close(
                z.detach(), together[name], atol=FORWARD, rtol=FORWARD, msg=name
            )
        model.zero_grad()
        torch.cat(list(run.values())).square().mean().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    torch.testing.assert_close(*gradients, atol=FORWARD, rtol=1e-4)


def test_the_whole_head_is_used_and_the_tower_learns(policy):
    """The reference skips the first layer of the head in training with pictures."""
    model = make_model(policy)
    (row,) = make_rows(model)[:1]
    packed(model, [row])["q0"].sum().backward()
    for name in ("score.fc.weight", "score.summary.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name
    tower = [p.grad for n, p in model.named_parameters() if "vis" in n and p.grad is not None]
    assert sum(g.abs().sum() for g in tower) > 0


def test_values_see_the_picture(policy):
    model = make_model(policy)
    row = make_rows(model)[0]
    before = outputs_of(model, [row])["q0"]
    row.pictures = ["p2"]  # of the same size
    assert (outputs_of(model, [row])["q0"] - before).abs().min() > 1e-4


def test_candidate_head_and_distribution_see_them_too(qwen):
    for fields in ({"head": "candidate"}, {"target": "distribution", "bins": [1, 2, 4, 8]}):
        model = make_model(qwen, **fields)
        rows = make_rows(model)
        alone = {r.prompt_id: outputs_of(model, [r])[r.prompt_id] for r in rows}
        torch.testing.assert_close(outputs_of(model, rows), alone, atol=FORWARD, rtol=FORWARD)


def test_it_is_saved_and_loaded_with_the_processor(policy, tmp_path):
    model = make_model(policy)
    again = LengthValueModel.from_pretrained(
        save_checkpoint(model, make_tokenizer(), tmp_path / "lenvm")
    ).eval()
    assert same_processor(again.config.processor, model.config.processor) == ""
    rows = make_rows(model)
    torch.testing.assert_close(outputs_of(again, rows), outputs_of(model, rows))


def write_file(model, path, rows=None):
    rows = rows or make_rows(model)
    settings = model.config.processor
    with RolloutWriter(path, tokenizer_sha="tiny", processor=settings) as writer:
        names = {name: writer.add_picture(x.data, x.mime) for name, x in rows[0].media.items()}
        for row in rows:
            row.pictures = row.pictures and [names[name] for name in row.pictures]
        writer.append(rows)
    return path


def test_training_reads_the_pictures_of_the_file(qwen, tmp_path):
    model = make_model(qwen)
    path = write_file(model, tmp_path / "rollouts")
    first = [p.clone() for n, p in model.named_parameters() if "visual" in n]
    done = train(model, path, Recipe(learning_rate=1e-2, steps=20), label="x", progress=False)
    assert done["loss_by_tenth"][-1] < done["loss_by_tenth"][0]
    moved = [p for n, p in model.named_parameters() if "visual" in n]
    assert any(not torch.equal(a, b) for a, b in zip(first, moved, strict=True))


def test_one_question_about_two_pictures_is_two_prompts(qwen, tmp_path):
    model = make_model(qwen)
    row, other = make_rows(model)[0], make_rows(model)[0]
    other.pictures, other.prompt_id = ["p2"], "another"
    path = write_file(model, tmp_path / "rollouts", [row, other])
    assert find_duplicates(path).unique_prompts == 2
    split = split_by_prompt(path, tmp_path / "a", tmp_path / "b", heldout_prompts=1)
    assert (split.train_rows, split.heldout_rows) == (1, 1)
    (kept,) = RolloutReader(tmp_path / "a").iter_rows()
    assert kept.media[kept.pictures[0]].data in PICTURES
    assert RolloutReader(tmp_path / "a").metadata["processor"] == model.config.processor


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda row: setattr(row, "media", None), "nothing says where they are"),
        (lambda row: setattr(row, "pictures", ["p0", "p1"]), "2 pictures of"),
        (lambda row: setattr(row, "pictures", None), "0 pictures of"),
        (lambda row: setattr(row, "pictures", ["p1"]), "ids and pictures were not made by"),
        (lambda row: row.response_ids.insert(0, PLACEHOLDER), "the response has the token"),
        (lambda row: setattr(row, "media", media(PICTURES[0][:90])), "cannot be decoded"),
        (lambda row: setattr(row, "media", media(b"text")), "cannot be decoded"),
    ],
)
def test_bad_pictures_are_refused(qwen, change, sentence):
    row = make_rows(make_model(qwen))[0]
    change(row)
    with pytest.raises(ValueError, match=sentence):
        outputs_of(make_model(qwen), [row])


def test_huge_pictures_are_not_decoded(qwen, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    with pytest.raises(ValueError, match="84 x 56 pixels, more than 100"):
        make_model(qwen).pictures.see("x", PICTURES[0])


def test_a_picture_of_another_hash_is_refused(qwen, tmp_path):
    model = make_model(qwen)
    path = write_file(model, tmp_path / "rollouts")
    row = next(row for row in RolloutReader(path).iter_rows() if row.pictures)
    row.pictures = ["0" * 64]
    with pytest.raises(ValueError, match="no file of pictures beside its shards holds it"):
        outputs_of(model, [row])


def test_another_processor_is_refused(qwen, tmp_path):
    other = {"size": make_processor("qwen2_5_vl", max_pixels=4 * 28**2).size}
    model = make_model(qwen)
    with pytest.raises(ValueError, match=r"other settings of the image processor \(size: "):
        check_processor(model.config.processor, {**model.config.processor, **other}, path="x")
    path = write_file(model, tmp_path / "rollouts")
    model.config.processor = {**model.config.processor, "merge_size": 4}
    with pytest.raises(ValueError, match="merge_size: 4, 2"):
        train(model, path, Recipe(learning_rate=1e-3, steps=1), label="x", progress=False)


def test_text_alone_is_refused_unless_asked_for(qwen, tiny_policy, tmp_path):
    rows = make_rows(make_model(qwen))
    blind = make_model(tiny_policy)
    with pytest.raises(ValueError, match="this LenVM reads text alone"):
        outputs_of(blind, rows)
    with pytest.raises(ValueError, match="sees pictures and .* does not"):
        init(policy=str(tiny_policy), tokenizer=str(qwen), out=tmp_path / "a")
    with pytest.raises(ValueError, match="sees pictures and a fresh trunk does not"):
        init(tokenizer=str(qwen), out=tmp_path / "a")
    with pytest.raises(ValueError, match="leave it out"):
        init(policy=str(tiny_policy), text_only=True, out=tmp_path / "a")
    init(policy=str(qwen), text_only=True, out=tmp_path / "b")
    asked = LengthValueModel.from_pretrained(tmp_path / "b")
    assert asked.pictures is None and asked.config.ignores_pictures
    assert set(outputs_of(asked, rows)) == {"q0", "q1", "q2"}


def test_init_says_what_does_not_work_yet(qwen, tmp_path):
    answer = init(policy=str(qwen), out=tmp_path / "lenvm")
    assert answer.figures["works"] == {"packed": True, "scoring": False, "sampling": True}
    assert "sees pictures" in " ".join(answer.warnings)


def test_a_policy_without_its_processor_is_refused(qwen, tmp_path):
    for file in qwen.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"no image processor \(preprocessor_config.json\)"):
        make_model(tmp_path)


def test_guidance_and_the_probe_refuse_pictures(qwen):
    from lenvm_rl.guidance import GuidanceSettings
    from lenvm_rl.model.forward import refuse_pictures

    model = make_model(qwen)
    with pytest.raises(ValueError, match="sees pictures, and candidate tokens are scored without"):
        GuidanceSettings(mode="equal", target=5).check_model(model.config)
    with pytest.raises(ValueError, match="has 1 pictures, and the probe reads tokens alone"):
        refuse_pictures(make_rows(model)[0], "the probe")
