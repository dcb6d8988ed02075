"""Hostile settings, tables, checkpoints and indexes, drawn by Hypothesis: a UserError or success, and nothing lost.

By default some seconds; PROSUTILS_FUZZ=10000 sets the number of examples of each property.
"""

import io
import math
import time
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LONGEST, fuzz
from hypothesis import given
from hypothesis import strategies as st

from prosutils.backbone import MINI_MEAN, MINI_STD, MiniTokenizer, PromptableCLIP, build_mini
from prosutils.checkpoints import config_from_dict, load_checkpoint, read_checkpoint, save_checkpoint
from prosutils.config import PRESETS, Config, Stage, Switches, load_preset
from prosutils.files import UserError
from prosutils.search import ImageIndex
from prosutils.tables import RESULTS, add_rows, read_table
from prosutils.training import build_model

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


def told(error):
    """A message for people: not empty, no bare name of a Python error."""
    text = str(error)
    return len(text) > 20 and "Traceback" not in text and "KeyError" not in text


def tried(work, *arguments):
    """What `work` gives, or the UserError's message; anything else, or a hang, fails the test."""
    start = time.monotonic()
    try:
        return work(*arguments)
    except UserError as error:
        assert told(error), str(error)
        return str(error)
    finally:
        assert time.monotonic() - start < LONGEST


# --- Settings -----------------------------------------------------------------------------------------------------

names = st.sampled_from([item.name for kind in (Config, Stage, Switches) for item in fields(kind)]) | st.text(
    max_size=9
)
overrides = st.dictionaries(names, values | st.dictionaries(names, values, max_size=3), max_size=4)


@fuzz
@given(st.sampled_from(sorted(PRESETS)), overrides)
def test_settings(preset, changed):
    """A configuration whose numbers are numbers in range, or a message."""
    made = tried(lambda: load_preset(preset, **{str(key): value for key, value in changed.items()}))
    if isinstance(made, Config):
        assert made.stage2.batch_size >= 1 and 0 <= made.stage1_dropout < 1 and made.temperature > 0
        assert all(math.isfinite(rate) and rate >= 0 for rate in (made.stage2.lr, made.stage2.lr_simulator))
        assert isinstance(made.stage1, Stage) and isinstance(made.switches, Switches)


@fuzz
@given(values | st.dictionaries(names, values, max_size=5))
def test_settings_of_a_file(stored):
    made = tried(config_from_dict, stored, "file.pt")
    assert isinstance(made, Config | str)


# --- Tables -------------------------------------------------------------------------------------------------------

ROW = {name: "x" for name in RESULTS.text} | {name: 1 for name in RESULTS.whole} | {name: 0.5 for name in RESULTS.real}
cells = st.text(max_size=8) | st.integers() | st.floats()
whole_tables = st.lists(st.dictionaries(st.sampled_from(RESULTS.names), cells), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@fuzz
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_table_of_any_bytes_keeps_them(place, content):
    """What cannot be read is left as it is, and new rows are not lost."""
    path = place / "table.csv"
    path.write_bytes(content)
    outcome = tried(add_rows, pd.DataFrame([ROW]), path, RESULTS)
    if isinstance(outcome, str):
        assert path.read_bytes() == content
        (beside,) = place.glob("table-unsaved-*.csv")
        assert len(read_table(beside, RESULTS)) == 1
        beside.unlink()


@fuzz
@given(whole_tables)
def test_rows_of_any_text_are_read_as_they_were_written(place, rows):
    path = place / "rows.csv"
    path.unlink(missing_ok=True)
    table = pd.DataFrame([ROW | {key: str(row[key]) for key in row if key in RESULTS.text} for row in rows])
    outcome = tried(add_rows, table, path, RESULTS)
    if not isinstance(outcome, str):
        stored = read_table(path, RESULTS)
        unique = table.drop_duplicates(list(RESULTS.key), keep="last").sort_values(list(RESULTS.key), ignore_index=True)
        assert stored[list(RESULTS.text)].values.tolist() == unique[list(RESULTS.text)].values.tolist()


# --- Checkpoints and indexes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return PromptableCLIP(build_mini(), MiniTokenizer(), MINI_MEAN, MINI_STD, "mini").requires_grad_(False).eval()


@pytest.fixture(scope="module")
def checkpoint(clip, toy, place):
    """The bytes of a small checkpoint."""
    from prosutils.splits import make_split

    split = make_split(toy, unseen_domain="sketch", unseen_classes=["gem"], val_classes=["box"])
    model = build_model("heads", clip, split, load_preset("mini-near"))
    save_checkpoint(model, place / "right.pt", dict(history=[]))
    return (place / "right.pt").read_bytes()


harms = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(b"")),
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("add"), st.integers(0, 10**6), st.binary(min_size=1, max_size=40)),
)


def harmed(content, harm):
    kind, place, new = harm
    place %= len(content)
    return content[:place] + new + content[place + {"cut": len(content), "flip": len(new), "add": 0}[kind] :]


@fuzz
@given(harms)
def test_a_harmed_checkpoint(checkpoint, clip, place, harm):
    (place / "harmed.pt").write_bytes(harmed(checkpoint, harm))
    tried(load_checkpoint, place / "harmed.pt", clip)


@fuzz
@given(st.sampled_from(["identity", "state", "training", "version", "config", "classes", "method"]), values)
def test_a_checkpoint_with_other_content(checkpoint, clip, place, key, value):
    stored = torch.load(io.BytesIO(checkpoint), weights_only=True)
    (stored if key in stored else stored["identity"])[key] = value
    try:
        torch.save(stored, place / "other.pt")
    except (TypeError, ValueError, UnicodeEncodeError):
        return
    tried(read_checkpoint, place / "other.pt")
    tried(load_checkpoint, place / "other.pt", clip)


@fuzz
@given(harms)
def test_a_harmed_index(toy_folder, place, harm):
    path = place / "right.npz"
    if not path.exists():
        with open(path, "wb") as file:
            np.savez(file, features=np.eye(4, dtype="float32"), path=list("abcd"), signature="s", root=str(toy_folder))
    (place / "harmed.npz").write_bytes(harmed(path.read_bytes(), harm))
    found = tried(ImageIndex.load, place / "harmed.npz")
    if isinstance(found, ImageIndex):
        tried(found.search, torch.ones(4))
