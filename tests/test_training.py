"""The training loop: it learns, repeats, resumes, validates on the right classes; checkpoints are safe and checked."""

import dataclasses
import sys
import types

import pandas as pd
import pytest
import torch

from prosutils.backbone import MINI_MEAN, MINI_STD, MiniTokenizer, PromptableCLIP, build_mini
from prosutils.checkpoints import load_checkpoint, save_checkpoint
from prosutils.config import load_preset
from prosutils.evaluation import embed
from prosutils.files import UserError
from prosutils.logs import open_log
from prosutils.splits import make_split
from prosutils.training import TrainingRun, build_model, set_rates, train


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return PromptableCLIP(build_mini(), MiniTokenizer(), MINI_MEAN, MINI_STD, "mini").requires_grad_(False).eval()


@pytest.fixture(scope="module")
def split(toy):
    return make_split(toy, unseen_domain="sketch", unseen_classes=["gem", "stripes"], val_classes=["box", "cross"])


def config(**settings):
    short = dict(stage1=dict(epochs=1, batch_size=9), stage2=dict(epochs=2, batch_size=6))
    return load_preset("mini-near", **(short | settings))


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.tuned_state().values(), second.tuned_state().values(), strict=True)
    )


@pytest.fixture(scope="module")
def run(clip, split, tmp_path_factory):
    """(model, history, folder) of one short run."""
    folder = tmp_path_factory.mktemp("run")
    model = build_model("pros", clip, split, config())
    return model, train(model, split, folder, progress=False), folder


def test_history_has_a_row_per_epoch_and_the_loss_falls(run):
    history = run[1]
    assert history[["stage", "epoch"]].values.tolist() == [[1, 1], [2, 1], [2, 2]]
    assert history.loss[2] < history.loss[1] and history.images.is_monotonic_increasing
    assert history["val_mAP@200"].notna().tolist() == [False, True, True]


def test_each_stage_changes_what_it_trains_only(clip, split, run):
    start, model = build_model("pros", clip, split, config()), run[0]
    dead = {"simulator.body.class_embedding", "simulator.body.proj"}
    names = set(start.tuned_state())
    for (name, before), after in zip(start.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after) == (name not in names or name in dead), name


def test_the_same_seed_gives_the_same_run_and_another_seed_another(clip, split, run):
    torch.rand(7)  # what ran before must not matter
    again = build_model("pros", clip, split, config())
    train(again, split, progress=False)
    assert same(again, run[0])
    other = build_model("pros", clip, split, config(seed=1))
    train(other, split, progress=False)
    assert not same(other, run[0])


def test_training_leaves_the_callers_random_numbers_alone(clip, split):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(build_model("heads", clip, split, config(stage2=dict(epochs=1, batch_size=6))), split, progress=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stop", [(1, 1), (2, 1)])
def test_an_interrupted_run_goes_on_to_the_same_end(clip, split, run, tmp_path, monkeypatch, stop):
    save = TrainingRun.save

    def save_and_stop(self):
        save(self)
        if (self.stage, self.epoch) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(build_model("pros", clip, split, config()), split, tmp_path, progress=False)
    monkeypatch.setattr(TrainingRun, "save", save)
    model = build_model("pros", clip, split, config())
    history = train(model, split, tmp_path, resume=True, progress=False)
    assert same(model, run[0])
    pd.testing.assert_frame_equal(history, run[1])


def test_variants_share_a_stage_1_that_is_theirs_too(clip, split, run, tmp_path, monkeypatch):
    history = train(build_model("pros-no-mask", clip, split, config()), split, progress=False, shared=tmp_path)
    trained, train_stage = [], TrainingRun.train_stage
    monkeypatch.setattr(
        TrainingRun, "train_stage", lambda self, stage: (trained.append(stage), train_stage(self, stage))
    )
    model = build_model("pros", clip, split, config())
    again = train(model, split, progress=False, shared=tmp_path)
    assert trained == [2] and same(model, run[0]) and again.equals(run[1])  # as if it had trained stage 1 itself
    assert again.loss[0] == history.loss[0]
    for other in (
        build_model("pros-class-units", clip, split, config()),
        build_model("pros", clip, split, config(stage1=dict(epochs=2, batch_size=9))),
    ):
        train(other, split, progress=False, shared=tmp_path)
    assert trained == [2, 1, 2, 1, 2] and len(list(tmp_path.iterdir())) == 3


def test_no_image_of_the_unseen_classes_or_domain_is_read_before_the_test(clip, split, monkeypatch):
    read = []
    load = type(split.data).load
    monkeypatch.setattr(type(split.data), "load", lambda self, row: read.append(row) or load(self, row))
    train(build_model("pros", clip, split, config()), split, progress=False)
    assert set(read) <= set(torch.cat([split.train, split.val_query, split.val_gallery]).tolist())
    assert not set(read) & set(split.query.tolist()) and not set(read) & set(split.gallery.tolist())


def test_released_selection_looks_at_the_test_queries(clip, split, monkeypatch):
    read = []
    load = type(split.data).load
    monkeypatch.setattr(type(split.data), "load", lambda self, row: read.append(row) or load(self, row))
    settings = config(switches=dict(selection="released"), stage2=dict(epochs=1, batch_size=6))
    train(build_model("heads", clip, split, settings), split, progress=False)
    assert set(split.query.tolist()) <= set(read)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(clip, split, monkeypatch):
    values = iter([0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr("prosutils.training.mean_average_precision", lambda *_: next(values))
    settings = config(stage2=dict(epochs=4, batch_size=6, patience=2))
    model = build_model("heads", clip, split, settings)
    assert len(train(model, split, progress=False)) == 3  # two epochs without a better value
    values = iter([0.5])
    first = build_model("heads", clip, split, config(stage2=dict(epochs=1, batch_size=6)))
    train(first, split, progress=False)
    assert same(model, first)


def test_rates_fall_a_thousandfold_and_stop_at_the_floor():
    optimiser = torch.optim.Adam(
        [dict(params=[torch.nn.Parameter(torch.ones(1))], name=name) for name in ("prompts", "simulator", "heads")]
    )
    stage = load_preset("pacs").stage2
    for epoch, expected in ((0, 1e-4), (1, 1e-4 * 10**-0.15), (10, 1e-4 * 10**-1.5), (20, 1e-6), (200, 1e-6)):
        set_rates(optimiser, stage, epoch)
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([expected] * 3)
    set_rates(optimiser, dataclasses.replace(stage, lr_heads=0.0), 3)
    assert optimiser.param_groups[2]["lr"] == 0


def test_a_checkpoint_gives_the_model_back(run, clip, split, tmp_path):
    model, _, folder = run
    save_checkpoint(model, tmp_path / "model.pt")
    images = torch.randn(3, 3, 56, 56)
    for path in (tmp_path / "model.pt", folder / "checkpoint.pt"):
        torch.testing.assert_close(embed(load_checkpoint(path, clip), images), embed(model, images))
    assert not list(tmp_path.glob("*.part"))
    assert (tmp_path / "model.pt").stat().st_size < 4.2 * sum(value.numel() for value in model.tuned_state().values())


def test_resume_into_another_run_says_what_differs(run, clip, split):
    other = build_model("pros", clip, split, config(seed=3, stage2=dict(epochs=5, batch_size=6)))
    with pytest.raises(UserError, match=r"seed: 0 there, 3 here.*|stage2.epochs: 2 there, 5 here.*"):
        train(other, split, run[2], resume=True, progress=False)


@pytest.mark.parametrize(
    "content, words", [(None, "no checkpoint"), (b"nonsense", "not a checkpoint"), (b"", "not a checkpoint")]
)
def test_broken_checkpoints_are_refused(tmp_path, content, words):
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_checkpoint(path)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("code from a checkpoint ran",))

    torch.save(dict(identity=Harmful(), state={}, training=None), tmp_path / "model.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_failed_write_leaves_the_old_checkpoint(run, tmp_path, monkeypatch):
    model, path = run[0], tmp_path / "model.pt"
    save_checkpoint(model, path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(model, path)
    assert path.read_bytes() == before


def test_a_loss_that_is_no_number_stops_the_run(clip, split):
    settings = config(stage1=dict(epochs=1, batch_size=9, lr=1e30))
    with pytest.raises(UserError, match="lower the learning rates"):
        train(build_model("pros", clip, split, settings), split, progress=False)


def test_unknown_method_lists_the_known(clip, split):
    with pytest.raises(UserError, match="Known: .*pros, "):
        build_model("prosody", clip, split, config())


def test_every_epoch_is_told_and_kept_as_it_ends(clip, split, tmp_path, caplog):
    """history.csv, Python's log and a log of one's own: an interrupted run has left what it measured."""
    rows, seen = [], []

    def log(row):
        rows.append(row)
        seen.append(len(pd.read_csv(tmp_path / "history.csv")))

    with caplog.at_level("INFO", logger="prosutils"):
        history = train(build_model("pros", clip, split, config()), split, tmp_path, progress=False, log=log)
    assert seen == list(range(1, len(history) + 1)) and pd.DataFrame(rows).stage.tolist() == history.stage.tolist()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), history)
    assert len(caplog.messages) == len(history)
    assert caplog.messages[-1].startswith(f"ProS: stage 2, epoch {history.epoch.iloc[-1]}: loss ")


def test_logs_of_other_packages(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            written.append("flushed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    open_log("tensorboard", tmp_path)(dict(stage=1, epoch=2, loss=0.5, accuracy=0.25, images=80))
    assert written == [str(tmp_path), ("stage 1/loss", 0.5, 80), ("stage 1/accuracy", 0.25, 80), "flushed"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="The log wandb needs a package that is not installed: pip install wandb"):
        open_log("wandb", tmp_path)
    with pytest.raises(UserError, match="Unknown log 'mlflow'. Known: tensorboard, wandb"):
        open_log("mlflow", tmp_path)
