"""The checkpoint is the truth: it names its model, and its experiment, and no other, is made again from it."""

import dataclasses

import pytest
import torch

from prosutils import Experiment, UserError, build_model, evaluate, experiment, load_preset, load_released_checkpoint
from prosutils import checkpoints as files
from prosutils.backbone import load_clip
from prosutils.checkpoints import identity, load_checkpoint, read_checkpoint, refuse_other_run, save_checkpoint
from prosutils.pros import ProS
from prosutils.splits import make_split
from prosutils.training import TrainingRun

UNSEEN = ["gem", "stripes"]


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini")


def config(**settings):
    short = dict(stage1=dict(epochs=1, batch_size=9), stage2=dict(epochs=1, batch_size=6))
    return load_preset("mini-near", **(short | settings))


def built(clip, toy, method="heads", **settings):
    """A model that has not been trained; its checkpoint says everything all the same."""
    made = config(**settings)
    split = make_split(toy, unseen_domain=made.unseen_domain, unseen_classes=UNSEEN, seed=made.split_seed)
    return build_model(method, clip, split, made), split


@pytest.fixture
def saved(clip, toy, tmp_path):
    """saved(**settings): path of the checkpoint of such a model."""

    def save(**settings):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        save_checkpoint(built(clip, toy, **settings)[0], path)
        return path

    return save


def changed(path, change):
    """The file with its content changed in place."""
    stored = torch.load(path, weights_only=True)
    change(stored)
    torch.save(stored, path)
    return path


# --- What a file says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["heads", "pros", "vpt-deep", "full", "depro"])
def test_exactly_the_tensors_that_the_method_trains_are_needed(saved, clip, method):
    whole = saved(method=method)
    name = sorted(torch.load(whole, weights_only=True)["state"])[-1]
    with pytest.raises(UserError, match=f"lacks {name}"):
        load_checkpoint(changed(saved(method=method), lambda s: s["state"].pop(name)), clip)
    with pytest.raises(UserError, match="holds besides extra"):
        load_checkpoint(changed(saved(method=method), lambda s: s["state"].update(extra=torch.zeros(1))), clip)
    frozen = "clip.model.visual.positional_embedding"
    if method not in ("full", "depro"):  # a tensor of the backbone that this method does not train
        with pytest.raises(UserError, match=f"holds besides {frozen}"):
            load_checkpoint(changed(saved(method=method), lambda s: s["state"].update({frozen: torch.zeros(1)})), clip)
    with pytest.raises(UserError, match=r"does not fit .* is \[1\] there"):
        load_checkpoint(changed(saved(method=method), lambda s: s["state"].update({name: torch.zeros(1)})), clip)
    load_checkpoint(whole, clip)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["identity"].update(method="older"),
        lambda s: s["identity"].pop("config"),
        lambda s: s["identity"].pop("classes"),
        lambda s: s["identity"]["config"].update(beta=3),
        lambda s: s["identity"]["config"].pop("temperature"),
        lambda s: s["identity"]["config"]["stage2"].update(momentum=0.9),
        lambda s: s["identity"]["config"]["switches"].pop("read_out"),
        lambda s: s["identity"].update(config=3),
        lambda s: s.update(identity=[1]),
        lambda s: s.update(version=99),
        lambda s: s.update(state=[1]),
    ],
)
def test_a_file_of_another_version_is_named_so(saved, clip, change):
    path = changed(saved(), change)
    for read in (load_checkpoint, Experiment.from_checkpoint):
        with pytest.raises(UserError, match="made by another version"):
            read(path)


@pytest.mark.parametrize("read", [load_checkpoint, lambda path: load_released_checkpoint(path, ["a", "b"], ["c"])])
def test_no_message_advises_to_run_the_code_of_a_file(tmp_path, read):
    path = tmp_path / "model.pt"
    torch.save(dict(identity=ProS, model_state_dict=ProS), path)
    with pytest.raises(UserError, match="is not a checkpoint") as said:
        read(path)
    assert "weights_only" not in str(said.value) and "will likely succeed" not in str(said.value)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(UserError, match="could not be loaded|is not a checkpoint") as said:
        load_clip("ViT-B-32-quickgelu", str(path))
    assert "weights_only" not in str(said.value)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    torch.save(dict(state={}), tmp_path / "model.pt")
    with pytest.raises(UserError, match="lacks identity and state"):
        read_checkpoint(tmp_path / "model.pt")
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path)


def test_settings_that_came_later_have_the_value_that_earlier_files_were_trained_with(saved, clip, monkeypatch):
    path = changed(saved(temperature=0.5), lambda s: s["identity"]["config"].pop("temperature"))
    monkeypatch.setattr(files, "EARLIER_SETTINGS", {"temperature": 0.5})
    assert load_checkpoint(path, clip).config.temperature == 0.5


def test_shipped_models_of_the_first_version_load(clip):
    for method in ("pros", "heads"):
        path = experiment.shipped_path(f"mini-near-{method}-sketch-seed0")
        model = load_checkpoint(path, clip)
        assert model.key == method and model.trained_on["training_pictures"].startswith("2354 ")


# --- What makes two runs one --------------------------------------------------------------------------------------

SAME = [
    dict(preset="mine"),
    dict(workers=3),
    dict(switches=dict(similarity="released")),
    dict(switches=dict(average_precision="released")),
]


@pytest.mark.parametrize("settings", SAME)
@pytest.mark.parametrize("method", ["heads", "pros"])
def test_what_does_not_change_the_result_is_no_part_of_a_run(clip, toy, tmp_path, settings, method):
    here, _ = built(clip, toy, method)
    there, split = built(clip, toy, method, **settings)
    refuse_other_run(identity(there), identity(here), "model.pt")
    if method == "pros":
        assert files.stage1_key(here) == files.stage1_key(there)
    stopped = TrainingRun(there, split, tmp_path, progress=False)
    stopped.begin_stage(2, there.config.stage2)
    stopped.save()
    TrainingRun(here, split, tmp_path, progress=False).restore()  # goes on


def test_a_first_stage_that_a_method_lacks_is_no_part_of_its_run(clip, toy):
    here, there = (built(clip, toy, stage1=dict(epochs=n, batch_size=9), stage1_dropout=n / 10)[0] for n in (1, 2))
    refuse_other_run(identity(there), identity(here), "model.pt")


@pytest.mark.parametrize(
    "settings, name",
    [
        (dict(seed=1), "seed"),
        (dict(split_seed=5), "training_pictures"),
        (dict(unseen_domain="pixel"), "domains"),
        (dict(temperature=0.5), "temperature"),
        (dict(stage2=dict(epochs=2, batch_size=6)), "stage2.epochs"),
        (dict(switches=dict(read_out="released")), "switches.read_out"),
        (dict(switches=dict(selection="released")), "switches.selection"),
        (dict(pixels=32), "pixels"),
    ],
)
def test_what_changes_the_result_is(clip, toy, settings, name):
    here, there = built(clip, toy)[0], built(clip, toy, **settings)[0]
    with pytest.raises(UserError, match=f"{name}: .* there, .* here"):
        refuse_other_run(identity(there), identity(here), "model.pt")


def test_switches_that_only_measure_choose_no_epoch(clip, toy):
    values = []
    for settings in (dict(), dict(switches=dict(similarity="released", average_precision="released"))):
        model, split = built(clip, toy, **settings)
        values.append(TrainingRun(model, split, None, progress=False).validate()["val_mAP@200"])
    assert values[0] == values[1]


def test_a_run_is_found_again_under_another_name_of_its_preset(toy_folder, tmp_path, monkeypatch):
    def run(**settings):
        return experiment.prepare(config(**settings), toy_folder, UNSEEN, tmp_path, progress=False)

    first, history = run().fit("heads", progress=False)
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("trained again"))
    for settings in SAME:
        model, again = run(**settings).fit("heads", progress=False)
        assert torch.equal(model.clip.model.visual.proj, first.clip.model.visual.proj) and again.equals(history)
        assert model.config.preset == settings.get("preset", "mini-near")  # named and measured as asked for here
        assert model.config.switches == run(**settings).config.switches


def test_what_ships_serves_under_other_names(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("trained"))
    settings = dict(preset="mine", workers=2, switches=dict(similarity="released"))
    run = experiment.prepare(load_preset("mini-near", **settings), artifacts=tmp_path, progress=False)
    assert run.fit("heads", shipped=True)[0].config.switches.similarity == "released"


# --- The experiment of a checkpoint -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [dict(seed=3), dict(split_seed=5), dict(unseen_domain="pixel")])
def test_a_checkpoint_gives_its_experiment_back(saved, clip, toy, toy_folder, settings):
    path = saved(**settings)
    run = Experiment.from_checkpoint(path, toy_folder, progress=False)
    _, split = built(clip, toy, **settings)
    for part in ("train", "val_query", "val_gallery", "query", "gallery"):
        assert torch.equal(getattr(run.split, part), getattr(split, part))
    assert dataclasses.replace(run.config, unseen_domain=settings.get("unseen_domain", "sketch")) == config(**settings)
    rows = run.evaluate(run.load(path))
    assert set(rows.seed) == {settings.get("seed", 0)}
    assert set(rows.unseen_domain) == {settings.get("unseen_domain", "sketch")}


def test_classes_that_were_drawn_come_back(clip, toy, toy_folder, tmp_path):
    split = make_split(toy, seed=4)
    save_checkpoint(build_model("heads", clip, split, config(split_seed=4)), tmp_path / "model.pt")
    run = Experiment.from_checkpoint(tmp_path / "model.pt", toy_folder, progress=False)
    assert (run.split.seen_classes, run.split.unseen_classes) == (split.seen_classes, split.unseen_classes)


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(settings=dict(seed=1)), "seed=0, and you ask for seed=1"),
        (dict(settings=dict(unseen_domain="pixel")), "unseen_domain=sketch, and you ask for unseen_domain=pixel"),
        (dict(settings=dict(split_seed=2)), "split_seed=0, and you ask for split_seed=2"),
        (dict(settings=dict(switches=dict(read_out="released"))), "read_out=paper, and you ask for .*=released"),
        (dict(unseen_classes=["ball", "box"]), "unseen classes gem, stripes, and you ask for ball, box"),
    ],
)
def test_an_option_that_contradicts_a_checkpoint_is_refused_with_both(saved, toy_folder, asked, words):
    with pytest.raises(UserError, match=words):
        Experiment.from_checkpoint(saved(), toy_folder, progress=False, **asked)


def test_options_that_agree_or_only_measure_are_taken(saved, toy_folder):
    settings = dict(seed=0, unseen_domain="sketch", workers=1, switches=dict(similarity="released"))
    path = saved()
    run = Experiment.from_checkpoint(
        path, toy_folder, progress=False, settings=settings, unseen_classes=["stripes", "gem"]
    )
    assert run.config.workers == 1
    assert set(run.evaluate(run.load(path)).switches) == {"heads=released similarity=released"}


def test_a_model_is_not_measured_on_what_it_was_trained_on(saved, clip, toy, toy_folder, tmp_path):
    """The split of seed 0 keeps other pictures out than that of seed 5: they were trained on."""
    other = load_checkpoint(saved(split_seed=5), clip)
    run = Experiment.from_checkpoint(saved(), toy_folder, progress=False)
    with pytest.raises(UserError, match="trained on other|was trained on .* pictures"):
        run.evaluate(other)
    with pytest.warns(UserWarning, match="may be measured on pictures that it was trained on"):
        evaluate(other, run.splits[-1])
    leaking = make_split(
        toy, "UdCDR", "sketch", UNSEEN, switches=config(switches=dict(udcdr_gallery="released")).switches
    )
    evaluate(load_checkpoint(saved(), clip), leaking)  # the split says itself that it repeats the leak: no warning


def test_a_folder_that_has_changed_since_the_training_is_refused(saved, toy_folder, tmp_path):
    import shutil

    mine = tmp_path / "mine"
    shutil.copytree(toy_folder, mine)
    shutil.copy(mine / "emoji" / "ball" / "0.png", mine / "emoji" / "ball" / "new.png")
    with pytest.raises(UserError, match=r"training_pictures: \d+ \(.*\) there, \d+ \(.*\) here"):
        Experiment.from_checkpoint(saved(), mine, progress=False)
    shutil.rmtree(mine / "emoji" / "ball")
    for domain in ("outline", "pixel", "sketch"):
        shutil.rmtree(mine / domain / "ball")
    with pytest.raises(UserError, match="1 classes that .* does not have .ball.*--data"):
        Experiment.from_checkpoint(saved(), mine, progress=False)


def test_a_file_of_the_first_version_takes_its_unseen_classes_from_the_command(saved, toy_folder):
    def older(stored):
        del stored["version"]
        for name in ("gallery_domain", "val_classes", "unseen_classes"):
            del stored["identity"][name]

    path = changed(saved(), older)
    run = Experiment.from_checkpoint(path, toy_folder, progress=False, unseen_classes=UNSEEN)
    assert run.load(path).key == "heads"
    with pytest.raises(UserError, match="--unseen-classes"):
        Experiment.from_checkpoint(path, toy_folder, progress=False, unseen_classes=["gem"])
