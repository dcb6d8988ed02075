"""What is left of a ProS whose prompts are replaced, or one of whose parts is put back."""

import pytest
import torch

from prosutils import load_preset, prepare
from prosutils.evaluation import embed_rows, evaluate_all, rows_as_images
from prosutils.files import UserError
from prosutils.metrics import retrieval_metrics
from prosutils.parts import PROMPTS, embed_rows_in_part, embed_rows_with_prompts, partners, restored


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prepare(load_preset("mini"), artifacts=tmp_path_factory.mktemp("parts"), progress=False)


@pytest.fixture(scope="module")
def model(run):
    return run.fit("pros", shipped=True)[0]


@pytest.fixture(scope="module")
def rows(run):
    return run.split.query[::6]


@pytest.mark.parametrize("same_domain", [True, False])
def test_a_partner_is_another_picture_of_the_right_domain(same_domain):
    domains = torch.arange(60) % 3
    found = partners(domains, same_domain, seed=1)
    assert (found != torch.arange(60)).all()
    assert ((domains[found] == domains) == same_domain).all()
    if same_domain:
        assert sorted(found.tolist()) == list(range(60))  # every picture's prompts are used once


def test_partners_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="no other of it"):
        partners(torch.tensor([0, 0, 1]), True, 0)
    with pytest.raises(UserError, match="no other to take"):
        partners(torch.tensor([0, 0]), False, 0)


def test_features_are_those_of_the_prompts_that_are_named(run, model, rows):
    data = run.data
    batch = torch.stack([item[0] for item in rows_as_images(model, data, rows)])
    with torch.no_grad():
        written = model.simulate(batch)
        whose = partners(data.domain_index[rows], True, 0)
        expected = {
            "own": model.encode_with_prompts(batch, written),
            "another picture's": model.encode_with_prompts(batch, written[whose]),
            "mean": model.encode_with_prompts(batch, written.mean(0, keepdim=True).expand_as(written)),
            "none": model.encode_with_prompts(batch, None),
        }
    for prompts, features in expected.items():
        torch.testing.assert_close(embed_rows_with_prompts(model, data, rows, prompts), features, atol=1e-4, rtol=1e-4)


def test_without_prompts_and_with_its_own_class_token_it_is_clip(run, model, rows):
    """In the paper's setting nothing else reaches the image feature."""
    bare = restored(model, run.clip, "class token")
    torch.testing.assert_close(
        embed_rows_with_prompts(bare, run.data, rows, "none"),
        embed_rows(run.clip, run.data, rows),
        atol=1e-4,
        rtol=1e-4,
    )
    assert not torch.equal(
        model.clip.model.visual.class_embedding, run.clip.model.visual.class_embedding
    )  # the model itself is left as it was


def test_own_prompts_beat_anothers_and_none(run, model):
    """The paper's setting on chalk: the effect that notebook 03 teaches on, and the reading of a grid's case."""
    value = {
        part: evaluate_all(
            model,
            [run.split],
            features_of=lambda rows, part=part: embed_rows_in_part(model, run.clip, run.data, rows, part),
        )["mAP@200"].item()
        for part in (*PROMPTS, "class token")
    }
    assert value["own"] > value["another picture's"] + 0.01 and value["own"] > value["none"] + 0.02
    features = {rows: embed_rows(model, run.data, getattr(run.split, rows)) for rows in ("query", "gallery")}
    labels = {rows: run.data.class_index[getattr(run.split, rows)] for rows in ("query", "gallery")}
    direct = retrieval_metrics(features["query"], labels["query"], features["gallery"], labels["gallery"])["mAP@200"]
    assert value["own"] == pytest.approx(direct, abs=1e-4)


def test_unknown_kinds_are_refused_by_name(run, model, rows):
    with pytest.raises(UserError, match="Unknown prompts 'his'. Known: own, another"):
        embed_rows_with_prompts(model, run.data, rows, "his")
    with pytest.raises(UserError, match="Unknown part 'context'. Known: class token, heads"):
        restored(model, run.clip, "context")
