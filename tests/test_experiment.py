"""From a preset to a trained model: trained once, kept, and found again, also by two notebooks at a time."""
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prosutils import experiment, load_preset
from prosutils.training import mean_average_precision


def prepared(toy_folder, artifacts, **settings):
    config = load_preset("mini", unseen_domain="sketch", stage2=dict(epochs=1, batch_size=6), **settings)
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


def test_what_ships_is_the_presets_model_and_as_good_as_its_history_says(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("trained"))
    run = experiment.prepare(load_preset("mini"), artifacts=tmp_path, progress=False)
    for method in ("pros", "heads"):
        model, history = run.fit(method, shipped=True)
        value = mean_average_precision(model, run.data, run.split.val_query, run.split.val_gallery)
        assert value == pytest.approx(history["val_mAP@200"].max(), abs=2e-3)      # bfloat16 elsewhere, float32 here
    for other in (run.fit, experiment.prepare(load_preset("mini", seed=1), artifacts=tmp_path, progress=False).fit):
        with pytest.raises(pytest.fail.Exception):
            other("heads", shipped=other != run.fit)        # neither unasked nor for another run
