"""The study that computes a step as the released code does: the same loss and gradients from more work."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prosutils import ProS, load_clip, load_preset
from prosutils.cost import random_batch

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

from released_way import compare, ratios, released_way


@pytest.fixture(scope="module")
def model():
    config = load_preset("mini-near", stage1_dropout=0.0)
    return ProS(load_clip(), [f"class {i}" for i in range(20)], ["a", "b"], config)


@pytest.mark.parametrize("stage", [1, 2])
def test_both_ways_have_the_same_loss_and_gradients(model, stage):
    parameters = [p for group in model.set_stage(stage).values() for p in group]
    batch = random_batch(model, 4, torch.device("cpu"))

    def step():
        with FlopCounterMode(display=False) as counter:
            loss = model.loss(*batch, stage)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return loss, [g for g in gradients if g is not None], counter.get_total_flops()

    loss, gradients, work = step()
    with released_way():
        other_loss, other_gradients, other_work = step()
    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(other_gradients, gradients, atol=1e-5, rtol=1e-3)
    assert other_work > 1.1 * work and torch.equal(step()[0], loss)  # and afterwards all is as before


def test_the_table_has_a_row_for_each_stage_and_way(model):
    table = compare(model, images=4, repeats=1)
    assert (ratios(table).kept_gb > 1.3).all() and list(ratios(table).index) == [1, 2]
    table = table.set_index(["stage", "way"])
    assert len(table) == 4 and (table.seconds < 100).all()
    for stage in (1, 2):
        ours, theirs = table.loc[(stage, "this package")], table.loc[(stage, "released code")]
        assert theirs.kept_gb > 1.3 * ours.kept_gb and theirs.loss == pytest.approx(ours.loss, abs=1e-4)
