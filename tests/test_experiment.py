"""From a preset to a trained model: trained once, kept, and found again, also by two notebooks at a time."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prosutils import UserError, experiment, load_preset
from prosutils.training import mean_average_precision


def prepared(toy_folder, artifacts, **settings):
    config = load_preset("mini-near", unseen_domain="sketch", stage2=dict(epochs=1, batch_size=6), **settings)
    return experiment.prepare(config, toy_folder, ["gem", "stripes"], artifacts, progress=False)


def test_two_that_want_the_same_model_train_it_once(toy_folder, tmp_path, monkeypatch):
    """As two notebooks do that run together: the second waits for the first and loads what it has trained."""
    trained, train = [], experiment.train

    def slowly(*args):
        trained.append(args)
        time.sleep(0.5)
        return train(*args)

    monkeypatch.setattr(experiment, "train", slowly)
    runs = [prepared(toy_folder, tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        (first, _), (second, _) = pool.map(lambda run: run.fit("heads", progress=False), runs)
    assert len(trained) == 1
    assert torch.equal(first.clip.model.visual.proj, second.clip.model.visual.proj)


def test_other_settings_train_anew(toy_folder, tmp_path):
    first, _ = prepared(toy_folder, tmp_path).fit("heads", progress=False)
    again, _ = prepared(toy_folder, tmp_path).fit("heads", progress=False)
    other, _ = prepared(toy_folder, tmp_path, temperature=0.5).fit("heads", progress=False)
    assert torch.equal(first.clip.model.visual.proj, again.clip.model.visual.proj)
    assert not torch.equal(first.clip.model.visual.proj, other.clip.model.visual.proj)


def test_other_training_pictures_train_anew(toy_folder, tmp_path):
    """As somebody has who adds pictures to a folder: the old model may have been trained on what is tested now."""
    folder, artifacts = tmp_path / "mine", tmp_path / "artifacts"
    shutil.copytree(toy_folder, folder)
    run = prepared(folder, artifacts)
    first, _ = run.fit("heads", progress=False)
    picture = run.data.paths[run.split.train[0]]
    added = shutil.copy(picture, picture.with_name("new.png"))
    other, _ = prepared(folder, artifacts).fit("heads", progress=False)
    assert not torch.equal(first.clip.model.visual.proj, other.clip.model.visual.proj)
    shutil.copy(folder / "sketch" / "gem" / "0.png", folder / "sketch" / "gem" / "new.png")  # a query more
    again, _ = prepared(folder, artifacts).fit("heads", progress=False)
    assert torch.equal(other.clip.model.visual.proj, again.clip.model.visual.proj)
    added.unlink()
    with pytest.raises(UserError, match=r"training_pictures: \d+ \(.*\) there, \d+ \(.*\) here"):
        prepared(folder, artifacts).fit("heads", resume=True, progress=False)


def test_results_of_a_choosing_run_do_not_replace_those_of_the_final_one(toy_folder, tmp_path):
    path = tmp_path / "results.csv"
    for classes in ("train", "train+val", "train"):
        run = prepared(toy_folder, tmp_path, training_classes=classes)
        table = experiment.add_results(run.evaluate(run.fit("zero-shot")[0]).assign(preset="toy"), path)
    assert table.training_classes.value_counts().to_dict() == {"train": 4, "train+val": 4}


def test_what_ships_is_the_presets_model_and_as_good_as_its_history_says(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("trained"))
    run = experiment.prepare(load_preset("mini-near"), artifacts=tmp_path, progress=False)
    for method in ("pros", "heads"):
        model, history = run.fit(method, shipped=True)
        value = mean_average_precision(model, run.data, run.split.val_query, run.split.val_gallery)
        assert value == pytest.approx(history["val_mAP@200"].max(), abs=2e-3)  # bfloat16 elsewhere, float32 here
    for other in (
        run.fit,
        experiment.prepare(load_preset("mini-near", seed=1), artifacts=tmp_path, progress=False).fit,
    ):
        with pytest.raises(pytest.fail.Exception):
            other("heads", shipped=other != run.fit)  # neither unasked nor for another run
