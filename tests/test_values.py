"""Values are checked where they are made, by name; devices, workers and processors change no result."""

import dataclasses
import math
import os
import pickle
import re
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from prosutils import (
    Stage,
    Switches,
    UserError,
    build_model,
    cli,
    embed,
    evaluation,
    experiment,
    load_preset,
    make_split,
)
from prosutils.backbone import load_clip
from prosutils.domains import Images, train_transform
from prosutils.evaluation import loader
from prosutils.files import refuse_unwritable, scratch_folder
from prosutils.search import ImageIndex, query_feature, search_gallery, search_model, signature
from prosutils.training import SeededImages, TrainingRun, train

ROOT = Path(__file__).parents[1]
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def clip():
    return load_clip("mini")


@pytest.fixture(scope="module")
def split(toy):
    return make_split(toy, unseen_domain="sketch", unseen_classes=["gem", "stripes"], val_classes=["box", "cross"])


def config(**settings):
    short = dict(stage1=dict(epochs=1, batch_size=9), stage2=dict(epochs=2, batch_size=6))
    return load_preset("mini-near", **(short | settings))


# --- Settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, values",
    [
        ("epochs", (-1, 1.5, "3", None, True, NAN)),
        ("batch_size", (0, -3, 2.5)),
        ("lr", (-1e-3, NAN, INF, "fast", None)),
        ("lr_simulator", (-1, NAN, INF)),
        ("lr_heads", (-1, NAN, INF)),
        ("min_lr", (-1, NAN, INF)),
        ("decay_epochs", (0, -1, NAN)),
        ("patience", (0, -1)),
        ("classes_per_batch", (-1, 0.5)),
    ],
)
def test_a_stage_refuses_values_that_it_cannot_train_with(name, values):
    good = dict(epochs=1, batch_size=2, lr=1e-3)
    for value in values:
        with pytest.raises(UserError, match=f"^{name} is {value!r}; it takes"):
            Stage(**good | {name: value})
        with pytest.raises(UserError, match=f"^stage2.{name} is {value!r}; it takes"):
            load_preset("mini-near", stage2={name: value})
    Stage(epochs=0, batch_size=1, lr=0)  # random units; nothing but the heads


@pytest.mark.parametrize(
    "name, values",
    [
        ("simulator_layers", (0, -1, 1.5)),
        ("context_tokens", (0, -4)),
        ("pixels", (0, -64)),
        ("workers", (-1, 0.5)),
        ("seed", (-1, 0.5, 2**63)),
        ("split_seed", (-1, "0")),
        ("temperature", (0, -1, NAN, INF)),
        ("stage1_dropout", (-0.1, 1, NAN)),
        ("training_classes", ("val", None)),
        ("stage1", (3, "fast", dict, None)),
        ("switches", ("released", None)),
        ("backbone", (None, 3)),
        ("gallery_domain", (3,)),
    ],
)
def test_a_configuration_refuses_values_by_name(name, values):
    for value in values:
        with pytest.raises(UserError, match=f"^{name} is "):
            load_preset("mini-near", **{name: value})
    with pytest.raises(UserError, match="Switch read_out is 'mine'"):
        Switches(read_out="mine")


def test_every_preset_and_numpy_s_numbers_pass():
    made = load_preset(
        "mini-near", seed=np.int64(3), temperature=np.float32(0.5), stage2=dict(epochs=np.int32(2), lr=1)
    )
    assert [type(value) for value in (made.seed, made.temperature, made.stage2.epochs, made.stage2.lr)] == [
        int,
        float,
        int,
        float,
    ]
    for unseen in ("none", None, "None"):
        assert load_preset("mini-near", unseen_domain=unseen).unseen_domain is None


@pytest.mark.parametrize("words", ["--stage1 3", "--switches released", "--stage1.epochs.x 3", "--stage2.epochs"])
def test_a_group_of_settings_takes_no_value(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *words.split()])
    assert stopped.value.code == 2 and words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("pair", ["stage2.epochs=-1", "stage2.batch_size=-3", "stage1.lr=nan", "simulator_layers=0"])
def test_the_command_line_refuses_a_value_by_name_before_anything_is_done(pair, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--artifacts", str(tmp_path), "--data", str(tmp_path / "none"), f"--{pair}"])
    name = pair.partition("=")[0].rpartition(".")[2]
    told = str(stopped.value) + capsys.readouterr().err
    assert re.search(rf"\b{name} is ", told) and "Traceback" not in told and not list(tmp_path.iterdir())


def test_a_method_that_does_not_exist_is_noticed_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("prosutils.experiment.prepare", lambda *_: pytest.fail("prepared"))
    with pytest.raises(SystemExit, match="Unknown method 'typo'"):
        cli.main(["train", "--method", "typo", "--artifacts", str(tmp_path)])


def test_no_answers_are_refused_before_anything_is_embedded(toy, toy_folder, monkeypatch, clip):
    model = search_model()
    monkeypatch.setattr("prosutils.search.embed_rows", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises(SystemExit, match="k is 0; .*1 or more"):
        cli.main(["search", "--words", "a ball", "--data", str(toy_folder), "-k", "0"])
    with pytest.raises(UserError, match="k is -1"):
        search_gallery(model, toy, query_feature(model, "ball"), k=-1)
    with pytest.raises(UserError, match="batch_size is -1"):
        embed(clip, torch.zeros(2, 3, 56, 56), batch_size=-1)


# --- A loss that is no number -------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_noticed_at_its_step_and_never_saved(clip, split, tmp_path, monkeypatch):
    steps, loss = [], type(build_model("heads", clip, split, config())).loss_and_logits

    def broken(self, *batch):
        steps.append(len(steps))
        value, logits = loss(self, *batch)
        return (value * NAN if len(steps) == 2 else value), logits

    model = build_model("heads", clip, split, config())
    monkeypatch.setattr(type(model), "loss_and_logits", broken)
    with pytest.raises(UserError, match="at step 2 .*epoch 1 of stage 2: lower the learning rates"):
        train(model, split, tmp_path, progress=False)
    assert len(steps) == 2 and not (tmp_path / "checkpoint.pt").exists()


def test_parameters_that_are_no_numbers_are_noticed_before_they_are_saved(clip, split, tmp_path, monkeypatch):
    """The last step of an epoch may break them with a loss that was still a number."""
    model = build_model("heads", clip, split, config())
    run = TrainingRun(model, split, tmp_path, progress=False)
    step = TrainingRun.train_step

    def breaking(self, batch, stage):
        result = step(self, batch, stage)
        self.optimiser.param_groups[0]["params"][0].data.fill_(NAN)
        return result[0] * 0, result[1]

    monkeypatch.setattr(TrainingRun, "train_step", breaking)
    with pytest.raises(UserError, match="lower the learning rates"):
        run.train_stage(2)
    assert not (tmp_path / "checkpoint.pt").exists()


# --- Workers ------------------------------------------------------------------------------------------------------


def test_workers_change_no_result(clip, split, monkeypatch):
    monkeypatch.setattr(evaluation, "FEW_IMAGES", dict.fromkeys(evaluation.FEW_IMAGES, 0))
    torch.set_num_threads(1)
    histories, states = [], []
    for workers in (0, 2):
        model = build_model("pros", clip, split, config(workers=workers))
        histories.append(train(model, split, progress=False))
        states.append(model.tuned_state())
    assert histories[0].equals(histories[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_processes_live_from_epoch_to_epoch_and_few_images_need_none(toy, monkeypatch):
    images = Images(toy, torch.arange(len(toy)), np.asarray)
    assert loader(images, 2, batch_size=4).num_workers == 0  # read before two processes have begun
    monkeypatch.setattr(evaluation, "FEW_IMAGES", dict.fromkeys(evaluation.FEW_IMAGES, 0))
    batches = loader(images, 2, batch_size=64)
    seen = []
    for _ in range(2):
        list(batches)
        seen.append([process.pid for process in batches._iterator._workers])
    assert seen[0] == seen[1] and len(seen[0]) == 2


def test_a_loader_leaves_torch_s_random_numbers_alone(toy):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(loader(Images(toy, torch.arange(4), np.asarray), 0, batch_size=2))
    seeded = SeededImages(Images(toy, torch.arange(4), train_transform(16, (0.5,) * 3, (0.5,) * 3)))
    first, second = seeded[0, 11][0], seeded[0, 12][0]
    assert torch.equal(seeded[0, 11][0], first) and not torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)


def test_what_goes_to_a_process_can_be_pickled(toy, clip, split):
    run = TrainingRun(build_model("heads", clip, split, config()), split, None, progress=False)
    for images in (SeededImages(run.data), evaluation.rows_as_images(run.model, toy, torch.arange(3))):
        pickle.loads(pickle.dumps(images))


def test_a_training_with_processes_that_import_everything_anew(toy_folder, tmp_path):
    """As on macOS, on Windows, and on Linux from Python 3.14: few images are read by no process but this one."""
    program = f"""
import multiprocessing, sys, time
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from prosutils import cli
    start = time.time()
    cli.main(["train", "--method", "heads", "--data", {str(toy_folder)!r}, "--artifacts", {str(tmp_path)!r},
              "--unseen-domain", "sketch", "--unseen-classes", "gem,stripes", "--workers", "4",
              "--stage2.epochs", "2", "--stage2.batch-size", "6"])
    print("seconds", time.time() - start)
"""
    (tmp_path / "program.py").write_text(program)
    start = time.time()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout.split("seconds")[1]) < 40 and time.time() - start < 120


# --- Devices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "there, expected",
    [((True, False), "cuda"), ((False, True), "mps"), ((True, True), "cuda"), ((False, False), "cpu")],
)
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there[0])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there[1])
    assert experiment.find_device().type == expected


@pytest.mark.parametrize(
    "name, words",
    [
        ("cuda", "There is no device cuda here"),
        ("cuda:7", "There is no device cuda:7"),
        ("mps", "There is no device mps"),
        ("gpu", "Unknown device 'gpu'"),
        ("xla", "Unknown device 'xla'"),
        ("", "Unknown device ''"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, toy_folder, name, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda:7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=words):
        cli.main(["train", "--data", str(toy_folder), "--device", name])


# --- Backbones and queries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "convnext_base", "ViT-bigG-14-CLIPA", "mini2"]
)
def test_a_backbone_that_takes_no_prompts_is_refused(name):
    with pytest.raises(UserError, match=f"backbone '{name}'. Known: mini, ViT-B-16, .*ViT-B-32-quickgelu"):
        load_clip(name)


def test_a_clip_embeds_pictures_and_paths_itself(clip, toy):
    both = embed(clip, [toy.load(0), toy.paths[0], str(toy.paths[0])])
    assert both.shape == (3, 192) and torch.equal(both[0], both[1]) and torch.equal(both[0], both[2])


def test_text_that_ends_like_a_picture_s_name_is_a_picture(toy):
    model = search_model()
    assert torch.equal(query_feature(model, str(toy.paths[0])), query_feature(model, toy.paths[0]))
    with pytest.raises(UserError, match="sketch.png cannot be read as an image"):
        query_feature(model, "sketch.png")
    assert query_feature(model, "a 3.5 inch disk. Really").shape == (1, 192)
    with pytest.raises(UserError, match="A query is a picture"):
        query_feature(model, None)


def test_words_that_the_text_tower_would_cut_are_refused(clip):
    model = search_model()
    just = "cat " * 24
    assert query_feature(model, just).shape == (1, 192)
    with pytest.raises(UserError, match="tokens, the text tower takes 32"):
        query_feature(model, "cat " * 100)
    assert not torch.equal(clip.encode_text([just]), clip.encode_text([just + "dog"]))  # the last that fits is read


@pytest.mark.parametrize("part", ["both", "x1", "x2"])
def test_depro_is_searched_with_words(clip, split, toy, part):
    model = build_model("depro", clip, split, config()).eval()
    model.part = part
    answers = search_gallery(model, toy, query_feature(model, "a ball"), k=3)
    assert len(answers) == 3


def test_search_ranks_as_the_switches_say(toy, tmp_path):
    """Features of unequal length: the nearest by cosine is not the nearest by distance."""
    features = torch.tensor([[10.0, 0.1], [1.0, 0.5]])
    query = torch.tensor([[1.0, 0.0]])
    index = ImageIndex(tmp_path, np.array(["far.png", "near.png"]), features, "")
    assert index.search(query, 1)[1].item() == "far.png"
    assert dataclasses.replace(index, similarity="euclidean").search(query, 1)[1].item() == "near.png"
    model = search_model()
    model.config = load_preset("mini-near", switches=dict(similarity="released"))
    folder = toy.root / "emoji"
    built = ImageIndex.build(model, folder)
    assert built.similarity == "euclidean"
    kept = built.save(tmp_path / "index.npz")
    assert ImageIndex.load(kept).similarity == "euclidean"
    other = search_model("mini-near")
    assert ImageIndex.load(kept, other).similarity == "cosine"  # the same features: ranking is no part of them
    assert signature(model) == signature(other)
    feature = query_feature(model, toy.paths[0])
    (score, *_), *_ = search_gallery(model, toy, feature, k=1)
    assert score == pytest.approx(0, abs=1e-3) and built.answers(feature, 1)[0][0] == pytest.approx(0, abs=1e-3)


# --- Files and interruptions --------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_noticed_before_anything_is_embedded(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("prosutils.evaluation.embed_rows", lambda *_, **__: pytest.fail("embedded"))
    monkeypatch.setattr(ImageIndex, "build", lambda *_, **__: pytest.fail("embedded"))
    (tmp_path / "file").write_text("x")
    out = str(tmp_path / "file" / "features.npz")
    for command in (["embed", "--data", str(toy_folder)], ["index", str(toy_folder)]):
        with pytest.raises(SystemExit, match="cannot be written: .*file is a file and not a folder"):
            cli.main([*command, "--out", out])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="read-only"):
        refuse_unwritable(tmp_path / "new" / "features.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="only root may act as two users")
def test_two_users_with_one_home(tmp_path):
    """Neither meets the other's lock, also where one of them made the folder that both would take."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o755)
    tmp_path.chmod(0o1777)
    program = (
        "import os, sys; os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))\n"
        "os.getuid = lambda: 1000\n"  # as in two containers that share /tmp
        "from prosutils.files import only_one\n"
        "with only_one('shared.csv') as lock: print(lock.lock_file)"
    )
    environment = os.environ | {"HOME": "/nonexistent", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = "from prosutils.files import only_one\n" + program  # while the files can still be read
    places = [
        subprocess.run(
            [sys.executable, "-c", program, str(user)], capture_output=True, text=True, check=True, env=environment
        ).stdout
        for user in (4001, 4002)
    ]
    assert places[0] != places[1]


def test_locks_are_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    own = scratch_folder()
    assert own == scratch_folder() and stat.S_IMODE(own.stat().st_mode) == 0o700
    own.rmdir()
    own.write_text("a file in its place")
    assert scratch_folder() != own and scratch_folder().is_dir()


def test_what_numba_compiles_has_a_place_that_can_be_written():
    program = (
        "import os, sys; os.environ.pop('NUMBA_CACHE_DIR', None)\n"
        "from prosutils.show.plots import umap_points\n"
        "import types; sys.modules['umap'] = types.SimpleNamespace(UMAP=lambda **_: "
        "types.SimpleNamespace(fit_transform=len))\nimport numpy; umap_points(numpy.eye(6)); place = "
        "os.environ['NUMBA_CACHE_DIR']\nos.makedirs(place, exist_ok=True); assert os.access(place, os.W_OK)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    "command, words",
    [
        (["train"], "--resume"),
        (["ablate", "baselines"], "the same command goes on there"),
        (["search", "--words", "a ball"], "begins anew"),
        (["index", "."], "begins anew"),
        (["tutorial"], "begins anew"),
    ],
)
def test_an_interruption_advises_what_the_command_has(monkeypatch, command, words):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    for name in ("experiment.prepare", "grid.run_grid", "search.search_model"):
        monkeypatch.setattr(f"prosutils.{name}", stopped)
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert words in stop.value.code and ("--resume" in stop.value.code) == (command[0] == "train")


@pytest.mark.skipif(os.name == "nt", reason="a pipe of a POSIX shell")
def test_a_reader_that_has_enough_gets_no_traceback(toy_folder):
    command = f'"{sys.executable}" -m prosutils search --words "a ball" --data "{toy_folder}" -k 3000 | true'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_an_archive_is_unpacked_safely_by_pythons_without_a_filter(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "data_scripts")
    import icon_packages

    monkeypatch.delattr(tarfile, "data_filter")
    (tmp_path / "a.txt").write_text("inside")
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "package/a.txt")
        archive.addfile(tarfile.TarInfo("../../escaped"))
        archive.addfile(link)
    with tarfile.open(tmp_path / "a.tgz") as archive:
        good, *bad = archive.getmembers()
        icon_packages.extract(archive, good, tmp_path / "out")
        for member in bad:
            with pytest.raises(UserError, match="outside its folder"):
                icon_packages.extract(archive, member, tmp_path / "out")
    assert (tmp_path / "out" / "package" / "a.txt").read_text() == "inside"


def test_no_script_needs_a_module_that_some_systems_lack():
    for path in [*ROOT.glob("studies/*.py"), *ROOT.glob("data_scripts/*.py"), *ROOT.glob("prosutils/**/*.py")]:
        assert not {"import fcntl", "import resource", "import pwd"} & set(
            path.read_text(encoding="utf-8").splitlines()
        )


def test_pre_training_takes_the_precision_that_the_processor_has():
    source = (ROOT / "data_scripts" / "pretrain_miniclip.py").read_text(encoding="utf-8")
    assert "enabled=has_bfloat16(self.device)" in source and source.count("bfloat16,") == 1
