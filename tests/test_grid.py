"""Grids of runs: every case runs, an interrupted grid goes on, and the summary says what the rows say."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch

from prosutils import UserError, grid, load_preset, make_split
from prosutils.grid import (
    GRIDS,
    RATES,
    by_training,
    choose,
    find_case,
    markdown,
    measure,
    merged,
    own_rates,
    run_grid,
    summary,
    with_held_out_domain,
)
from prosutils.tables import GRID, read_table

SHORT = dict(stage1=dict(epochs=1, batch_size=9), stage2=dict(epochs=1, batch_size=6))
PARTS = {"DePro (both)", "DePro (x1)", "DePro (x2)"}


@pytest.fixture(scope="module")
def table(toy_folder, tmp_path_factory):
    """Baselines and switches on the toy folder, measured once."""
    folder = tmp_path_factory.mktemp("grid")
    path = folder / "grid.csv"
    run_grid(
        ["baselines", "switches"], "mini-near", ["sketch"], [0], path, folder, jobs=2, settings=SHORT, data=toy_folder
    )
    return path


def test_every_case_has_its_rows(table):
    rows = read_table(table, GRID)
    cases = set(GRIDS["baselines"]) | set(GRIDS["switches"])
    assert set(rows.case) == cases
    assert set(rows.method) == cases - {"DePro"} | PARTS
    assert (rows.groupby("method").size() == 4).all()
    images = rows.groupby("method").images.min()
    assert images["Zero-shot CLIP"] == 0 and images["VPT + heads"] > 0
    assert not (table.parent / "grid").exists() or not any((table.parent / "grid").iterdir())  # models are not kept


def test_coop_retrieves_like_zero_shot_clip(table):
    rows = read_table(table, GRID).set_index("method")["mAP@all"]
    assert rows["CoOp"].tolist() == rows["Zero-shot CLIP"].tolist()


def test_a_switch_at_test_changes_the_number_and_not_the_training(table):
    rows = read_table(table, GRID)
    rows = rows[(rows.protocol == "UCDR") & (rows.gallery == "unseen")].set_index("method")
    ours, hits = rows.loc["ProS"], rows.loc["ProS, average_precision=released"]
    assert hits["mAP@all"] == ours["mAP@all"] and hits["Prec@200"] == ours["Prec@200"]
    assert hits["images"] == ours["images"]


def test_an_interrupted_grid_goes_on_where_it_stopped(table, toy_folder, tmp_path, monkeypatch):
    rows = read_table(table, GRID)
    part = tmp_path / "grid.csv"
    rows[rows.case != "Zero-shot CLIP"].to_csv(part, index=False)
    run_grid(["baselines", "switches"], "mini-near", ["sketch"], [0], part, tmp_path, settings=SHORT, data=toy_folder)
    pd.testing.assert_frame_equal(read_table(part, GRID), rows)
    monkeypatch.setattr("prosutils.grid.measure", lambda *_: pytest.fail("measured again"))
    run_grid(["baselines"], "mini-near", ["sketch"], [0], part, tmp_path, settings=SHORT, data=toy_folder)


def test_the_oracle_trains_on_the_held_out_domain_but_not_on_unseen_classes(toy, toy_folder, tmp_path):
    split = make_split(toy, unseen_domain="sketch", unseen_classes=["gem", "stripes"], val_classes=[])
    oracle = with_held_out_domain(split)
    extra = oracle.train[~torch.isin(oracle.train, split.train)]
    assert torch.equal(extra, toy.rows(["sketch"], split.seen_classes))
    assert len(oracle.train) == len(split.train) + len(extra)
    assert torch.equal(oracle.query, split.query) and oracle.train_domains == toy.domains
    name = "Heads only, held-out domain trained too"
    ((training, names),) = by_training([(name, "sketch", 0)], "mini-near", SHORT).items()
    assert training.oracle and names == [name]
    rows = measure(training, names, tmp_path, toy_folder)
    assert set(rows.protocol) == {"UCDR", "UcCDR"}  # UdCDR would have queries that were trained on


def test_ablations_and_oracles_name_methods_that_exist():
    for cases in GRIDS.values():
        for name in cases:
            assert find_case(name) is cases[name]
    assert merged(dict(stage2=dict(epochs=1), seed=0), dict(stage2=dict(lr=1.0))) == dict(
        stage2=dict(epochs=1, lr=1.0), seed=0
    )
    assert choose(["baselines", "switches"], ["ProS", "Heads only"]) == ["Heads only", "ProS"]
    with pytest.raises(UserError, match="Unknown grid 'all'. Known: ablations, baselines"):
        choose(["all"])
    with pytest.raises(UserError, match="Unknown case 'Pros'. Known: Centred, CoOp"):
        choose(["baselines"], ["Pros"])


def test_a_method_has_rates_of_its_own_and_those_that_are_asked_for_win():
    cases = [("Full fine-tuning", "sketch", 0), ("Heads only", "sketch", 0)]
    full, heads = (training.config for training in by_training(cases, "mini-near", {}))
    assert (full.stage2.lr, full.stage2.lr_heads) == tuple(RATES["mini-near"]["full"].values())
    assert heads == load_preset("mini-near", unseen_domain="sketch", seed=0)
    full, heads = (training.config for training in by_training(cases, "mini-near", dict(stage2=dict(lr=0.5))))
    assert (full.stage2.lr, full.stage2.lr_heads, heads.stage2.lr) == (0.5, RATES["mini-near"]["full"]["lr_heads"], 0.5)


def test_rates_are_those_that_the_search_found():
    """Within what seeds differ, .003, of the best of the trials on validation classes (studies/tune_methods.py)."""
    table = pd.read_csv(Path(__file__).parents[1] / "figures" / "search_rates.csv")
    groups = ["lr", "lr_simulator", "lr_heads"]
    for (preset, method), rows in table.groupby(["preset", "method"]):
        stage2 = load_preset(preset, **own_rates(preset, method)).stage2
        tried = rows.groupby(groups).val.mean().reset_index()
        used = tried[
            (tried[groups] - [getattr(stage2, name) for name in groups])
            .abs()
            .lt(1e-5)
            .where(tried[groups] > 0, True)
            .all(axis=1)
        ]
        assert len(used) == 1 and used.val.item() > tried.val.max() - 0.003, (preset, method)


def test_cases_that_differ_in_the_ranking_alone_share_a_training():
    names = ["ProS", "ProS, similarity=released", "ProS, average_precision=released", "ProS, read_out=released"]
    groups = by_training([(name, "sketch", seed) for name in names for seed in (0, 1)], "mini-near", {})
    assert list(groups.values()) == [names[:3], names[:3], names[3:], names[3:]]


def test_what_trains_longest_is_begun_first():
    groups = by_training([(name, "sketch", 0) for name in choose(["baselines", "ablations"])], "mini-near", {})
    assert [(training.method, training.config.simulator_layers) for training in groups][:4] == [
        ("pros", 4),
        ("depro", 1),
        ("pros", 3),
        ("pros", 2),
    ]
    assert sum(groups.values(), [])[4:6] == ["Zero-shot CLIP", "Heads only"]  # else as they are listed


def test_summary_is_the_mean_over_the_seeds_with_their_deviation():
    values = {
        ("ProS", "sketch", 0): 0.5,
        ("ProS", "sketch", 1): 0.7,
        ("ProS", "pixel", 0): 0.2,
        ("ProS", "pixel", 1): 0.2,
        ("Zero-shot CLIP", "sketch", 0): 0.3,
        ("Zero-shot CLIP", "pixel", 0): 0.1,
    }
    rows = [
        dict(method=method, unseen_domain=domain, seed=seed, protocol="UCDR", gallery="unseen", images=900)
        | {"mAP@200": value}
        for (method, domain, seed), value in values.items()
    ]
    mean, spread = summary(pd.DataFrame(rows))
    assert mean.index.tolist() == ["Zero-shot CLIP", "ProS"]
    assert mean.loc["ProS"].round(6).to_dict() == {"pixel": 0.2, "sketch": 0.6, "mean": 0.4}
    assert spread.loc["ProS", "sketch"].round(4) == 0.1414
    assert markdown(pd.DataFrame(rows)).splitlines()[-1] == "| ProS | 0.200 ± 0.000 | 0.600 ± 0.141 | 0.400 | 900 |"


def test_what_was_measured_with_other_settings_switches_or_pictures_is_measured_anew(toy_folder, tmp_path, monkeypatch):
    """The control is ranked in a moment, so that nothing has to be trained."""
    measured, path = [], tmp_path / "grid.csv"
    run = grid.measure
    monkeypatch.setattr(grid, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))

    def noted(training, names, *rest):
        measured.append(names)
        return run(training, names, *rest)

    monkeypatch.setattr(grid, "measure", noted)

    def table(data=toy_folder, **settings):
        cases = ["Zero-shot CLIP"]
        return run_grid(
            ["baselines"], "mini", ["sketch"], [0], path, tmp_path, settings=settings, data=data, cases=cases
        )

    assert len(table()) == 4 and len(table()) == 4 and len(measured) == 1
    assert len(table(workers=1, stage1=dict(epochs=3))) == 4 and len(measured) == 1  # the preset's own, and no result
    assert set(table(stage1=dict(epochs=1)).settings) == {"stage1.epochs=1"} and len(measured) == 2
    assert set(table(switches=dict(similarity="released")).switches) == {"similarity=released"} and len(measured) == 3
    shutil.copytree(toy_folder, tmp_path / "other")
    assert set(table(data=tmp_path / "other").data) == {"other"} and len(measured) == 4
    rows = read_table(path, GRID)
    assert len(rows) == 4 * 4 and not rows.duplicated(list(GRID.key)).any()


def test_a_grid_without_held_out_domain(toy_folder, tmp_path, monkeypatch):
    """As Sketchy and TU-Berlin have it: "none" stays a name in the table, in what is done and in the summary."""
    monkeypatch.setattr(grid, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    for domains in ([None], ["none"]):
        rows = run_grid(
            ["baselines"], "mini", domains, [0], tmp_path / "g.csv", tmp_path, data=toy_folder, cases=["Zero-shot CLIP"]
        )
        assert len(rows) == 1 and rows.unseen_domain[0] == "none" and rows.protocol[0] == "UcCDR"
        monkeypatch.setattr(grid, "measure", lambda *_: pytest.fail("measured again"))
    mean, _ = summary(rows, protocol="UcCDR")
    assert mean.columns.tolist() == ["none", "mean"]


def test_two_grids_share_no_folder_of_first_stages(toy_folder, tmp_path, monkeypatch):
    """A grid that ends leaves another's files alone, and its own do not stay."""
    other = tmp_path / "grid-of-another" / "stage1"
    other.mkdir(parents=True)
    (other / "key.pt").write_text("in use")
    monkeypatch.setattr(grid, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))

    def stopped(training, names, artifacts, data):
        raise UserError(str(artifacts))

    monkeypatch.setattr(grid, "measure", stopped)
    places = set()
    for _ in range(2):
        with pytest.raises(UserError) as said:
            run_grid(["baselines"], "mini", ["sketch"], [0], tmp_path / "g.csv", tmp_path, cases=["Heads only"])
        places.add(str(said.value))
    assert len(places) == 2 and [path.name for path in tmp_path.iterdir()] == ["grid-of-another"]
    assert (other / "key.pt").read_text() == "in use"


def test_values_that_no_grid_takes(tmp_path):
    def run(**changed):
        arguments = dict(names=["baselines"], preset="mini", domains=["sketch"], seeds=[0], jobs=1) | changed
        return run_grid(table=tmp_path / "g.csv", artifacts=tmp_path, **arguments)

    for changed, words in (
        (dict(jobs=0), "jobs is 0"),
        (dict(seeds=[-1]), "seed is -1"),
        (dict(settings=dict(stage2=dict(epochs=-1))), "stage2.epochs is -1"),
        (dict(names=["typo"]), "Unknown grid"),
    ):
        with pytest.raises(UserError, match=words):
            run(**changed)
    (tmp_path / "g.csv").write_text("preset;case\nmini;ProS\n")
    with pytest.raises(UserError, match="has: preset;case"):
        run()
