"""The command line as a user meets it: what it writes, and what it says when something is wrong."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

from prosutils import cli
from prosutils.config import changes, load_preset, override
from prosutils.files import UserError
from prosutils.grid import held_out_domains

ROOT = Path(__file__).parents[1]
SHORT = "--stage1.epochs 1 --stage1.batch-size 9 --stage2.epochs 1 --stage2.batch-size 6".split()
SPLIT = ["--unseen-domain", "sketch", "--unseen-classes", "gem,stripes"]
COLUMNS = {"method", "protocol", "unseen_domain", "gallery", "seed", "mAP@200", "Prec@200"}


@pytest.fixture(scope="module")
def trained(toy_folder, tmp_path_factory):
    """Artifacts of one short training on the toy folder, made by the command line."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    cli.main(["train", "--data", str(toy_folder), "--artifacts", str(artifacts), *SPLIT, *SHORT])
    return artifacts


def checkpoint(artifacts):
    return next(artifacts.glob("runs/*pros*/model.pt"))


def refusal(capsys, *arguments):
    """What a command says when it refuses: one line of ours, or what the parser prints before it exits with 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    if isinstance(stop.value.code, str):
        assert "\n" not in stop.value.code
        return stop.value.code
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_train_writes_a_row_per_measured_case(trained):
    table = pd.read_csv(trained / "results.csv")
    assert COLUMNS <= set(table.columns)
    assert table.groupby("method").size().to_dict() == {"ProS": 4, "Zero-shot CLIP": 4}
    assert set(zip(table.protocol, table.gallery, strict=True)) == {
        ("UCDR", "unseen"),
        ("UCDR", "mixed"),
        ("UcCDR", "unseen"),
        ("UdCDR", "seen"),
    }
    assert table["mAP@200"].between(0, 1).all()


def test_a_second_run_reuses_the_first(trained, toy_folder, monkeypatch):
    before = (trained / "results.csv").read_text()
    monkeypatch.setattr("prosutils.experiment.train", lambda *_: pytest.fail("trained again"))
    cli.main(["train", "--data", str(toy_folder), "--artifacts", str(trained), *SPLIT, *SHORT])
    assert (trained / "results.csv").read_text() == before


def test_evaluate_gives_the_numbers_of_training(trained, toy_folder, tmp_path):
    cli.main(["evaluate", str(checkpoint(trained)), "--data", str(toy_folder), "--artifacts", str(tmp_path), *SPLIT])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), pd.read_csv(trained / "results.csv"))


def test_evaluate_refuses_other_classes_and_domains_than_the_training_s(trained, toy_folder, tmp_path, capsys):
    base = ["evaluate", checkpoint(trained), "--data", toy_folder, "--artifacts", tmp_path]
    assert "unseen classes gem, stripes, and you ask for ball, house" in refusal(
        capsys, *base, "--unseen-domain", "sketch", "--unseen-classes", "ball,house"
    )
    assert "unseen_domain=sketch, and you ask for unseen_domain=pixel" in refusal(
        capsys, *base, "--unseen-domain", "pixel", "--unseen-classes", "gem,stripes"
    )


def test_embed_writes_features_with_their_names(trained, toy_folder, toy, tmp_path):
    out = tmp_path / "features.npz"
    cli.main(["embed", "--checkpoint", str(checkpoint(trained)), "--data", str(toy_folder), "--out", str(out)])
    stored = np.load(out)
    assert stored["features"].shape == (len(toy), 192) and np.isfinite(stored["features"]).all()
    assert stored["class"].tolist() == toy.table()["class"].tolist() and list(tmp_path.iterdir()) == [out]


def test_ablate_prints_and_writes_a_table(toy_folder, tmp_path, capsys):
    cli.main(
        [
            "ablate",
            "baselines",
            "--cases",
            "Zero-shot CLIP",
            "--domains",
            "sketch",
            "--data",
            str(toy_folder),
            "--artifacts",
            str(tmp_path),
            "--table",
            str(tmp_path / "grid.csv"),
        ]
    )
    rows = pd.read_csv(tmp_path / "grid.csv")
    value = rows[(rows.protocol == "UCDR") & (rows.gallery == "unseen")]["mAP@200"].item()
    assert len(rows) == 4 and set(rows.unseen_domain) == {"sketch"}
    assert f"| Zero-shot CLIP | {value:.3f} | {value:.3f} | 0 |" in capsys.readouterr().out


def test_ablate_holds_out_the_presets_domain_or_all(toy_folder):
    mini = load_preset("mini")
    assert held_out_domains(mini) == ["chalk"]
    assert held_out_domains(mini, ("pixel", "solid")) == ["pixel", "solid"]
    assert held_out_domains(mini, ("all",)) == ["mosaic", "blueprint", "stamp", "chalk", "cross_stitch"]
    near = load_preset("mini-near")
    assert held_out_domains(near, ("all",)) == ["clipart", "outline", "solid", "sketch", "pixel"]
    assert set(held_out_domains(load_preset("domainnet"), ("all",))) == {
        "sketch",
        "quickdraw",
        "painting",
        "infograph",
        "clipart",
    }
    with pytest.raises(UserError, match="name those of your folder"):
        held_out_domains(mini, ("all",), toy_folder)


@pytest.mark.parametrize("query", ["image", "words"])
def test_search_ranks_the_gallery(toy_folder, toy, capsys, query):
    value = toy_folder / "sketch" / "house" / "0.png" if query == "image" else "a house"
    cli.main(["search", f"--{query}", str(value), "--data", str(toy_folder), "-k", "5"])
    lines = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[1]) for line in lines]
    assert len(lines) == 5 and scores == sorted(scores, reverse=True) and all("emoji" in line for line in lines)


def test_search_finds_the_picture_itself_first(toy_folder, capsys):
    cli.main(["search", "--image", str(toy_folder / "emoji" / "gem" / "1.png"), "--data", str(toy_folder), "-k", "1"])
    assert capsys.readouterr().out.split()[-1].endswith("emoji/gem/1.png")


def test_refusals_are_one_clear_message(toy_folder, tmp_path, capsys):
    train = ["train", "--artifacts", tmp_path / "artifacts"]
    toy_train = [*train, "--data", toy_folder]
    assert "no folder" in refusal(capsys, *train, "--data", tmp_path / "missing")
    assert "Known: mini, mini-near, pictonet" in refusal(capsys, *train, "--preset", "minni")
    assert "needs --data" in refusal(capsys, *train, "--preset", "pacs")
    assert "Known: emoji, outline, pixel, sketch" in refusal(capsys, *toy_train, "--unseen-domain", "photo")
    assert "Known: ball, box" in refusal(capsys, *toy_train, "--unseen-domain", "sketch", "--unseen-classes", "zebra")
    assert "--stage2.epochs" in refusal(capsys, *toy_train, "--epochs", "3")  # what was perhaps meant
    assert "--stage2.epochs: invalid" in refusal(capsys, *toy_train, "--stage2.epochs", "many")
    assert "'paper', 'released'" in refusal(capsys, *toy_train, "--switches.dropout", "none")
    assert "temperature is 0.0" in refusal(capsys, *toy_train, "--temperature", "0")
    assert "pros-no-mask" in refusal(capsys, *toy_train, *SPLIT, "--method", "prosody")
    assert "no file" in refusal(capsys, *toy_train, *SPLIT, "--import", tmp_path / "mine.py")
    assert "Name grids (baselines, " in refusal(capsys, "ablate", "--data", toy_folder)
    assert "--image, --words" in refusal(capsys, "search", "--data", toy_folder)
    assert "nothing to resume" in refusal(capsys, *toy_train, *SPLIT, "--resume")
    assert "cannot be read as an image" in refusal(capsys, "search", "--image", __file__, "--data", toy_folder)
    assert "no checkpoint" in refusal(capsys, "evaluate", tmp_path / "none.pt")
    assert not (tmp_path / "artifacts").exists()


def test_resume_with_other_settings_says_what_differs(toy_folder, tmp_path, capsys, monkeypatch):
    train = ["train", "--data", str(toy_folder), "--artifacts", str(tmp_path), *SPLIT, *SHORT]
    monkeypatch.setattr("prosutils.experiment.save_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert "--resume" in refusal(capsys, *train)  # interrupted before the run was finished
    monkeypatch.undo()
    assert "stage2.epochs: 1 there, 2 here" in refusal(capsys, *train, "--stage2.epochs", "2", "--resume")


def test_a_broken_picture_is_skipped_or_refused(toy_folder, tmp_path, capsys):
    import shutil

    folder = tmp_path / "toy"
    shutil.copytree(toy_folder, folder)
    (folder / "emoji" / "ball" / "0.png").write_bytes((folder / "emoji" / "ball" / "0.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match="emoji/ball/0.png"):
        cli.main(["embed", "--data", str(folder), "--out", str(tmp_path / "features.npz")])
    message = refusal(capsys, "train", "--data", folder, "--on-error", "raise", *SPLIT)
    assert "1 of" in message and "emoji/ball/0.png" in message


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_said(toy_folder, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refusal(capsys, "embed", "--data", toy_folder, "--out", tmp_path / "sub" / "f.npz")


def test_every_setting_is_a_flag_with_the_presets_value(monkeypatch):
    made = []

    def note(config: cli.Settings):
        made.append(config)

    monkeypatch.setattr(cli, "train", note)
    words = "--stage2.epochs 3 --temperature 0.1 --switches.read_out released --pretrained x.pt --unseen-domain None"
    cli.main(["train", *words.split()])
    cli.main(["train", "--preset=domainnet", "--pretrained", "None"])
    mini, domainnet = made
    wanted = dict(stage2=dict(epochs=3), temperature=0.1, switches=dict(read_out="released"), pretrained="x.pt")
    assert mini == load_preset("mini", unseen_domain=None, **wanted)
    assert domainnet == load_preset("domainnet", pretrained=None)
    assert changes(mini, load_preset("mini")) == wanted | dict(unseen_domain=None)
    assert override(load_preset("mini"), changes(mini, load_preset("mini"))) == mini
    with pytest.raises(UserError, match="Known: mini"):
        load_preset("maxi")


def test_a_preset_has_an_alias_for_photographs(capsys):
    assert load_preset("clip", seed=3) == load_preset("pacs", seed=3) and load_preset("clip").preset == "pacs"
    assert override(load_preset("mini"), dict(preset="clip")).preset == "pacs"  # as `--preset clip` sets it
    assert "tuberlin, clip." in refusal(capsys, "search", "--words", "a", "--preset", "clop")
    for command in ("index", "search", "train"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert "clip (real CLIP" in " ".join(capsys.readouterr().out.replace("│", "").split())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "| `pacs`, alias `clip` |" in readme and "--preset clip" in readme


def test_importing_the_package_takes_no_time():
    """Names are imported when they are used. The least of three, for a machine that does other work."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import prosutils; prosutils.__all__"], cwd=ROOT, check=True)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 2


def test_help_lists_the_commands_without_waiting_for_pytorch():
    code = (
        "import sys, prosutils.cli as cli\ntry: cli.main(['train', '--help'])\n"
        "finally: assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(title in done.stdout for title in ("stage1 options", "stage2 options", "switches options"))
    done = subprocess.run(
        [sys.executable, "-m", "prosutils", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert all(command in done.stdout for command in cli.commands(load_preset("mini")))


def test_the_console_script_is_this_command_line():
    (script,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    assert script == ("prosutils", "prosutils.cli:main")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell with head")
def test_output_that_nobody_reads_any_more_is_no_error(toy_folder):
    command = f"{sys.executable} -m prosutils train --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr


PHOTOGRAPHS = ROOT.parent / "shared" / "pacs_small"


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs a folder of photographs that is not shipped")
def test_a_folder_of_photographs_trains_and_says_that_the_numbers_are_modest(tmp_path, capsys):
    cli.main(
        [
            "train",
            "--preset",
            "mini",
            "--data",
            str(PHOTOGRAPHS),
            "--unseen-domain",
            "sketch",
            "--unseen-classes",
            "guitar,house",
            "--artifacts",
            str(tmp_path),
            "--stage1.epochs=1",
            "--stage2.epochs=1",
        ]
    )
    assert "modest numbers" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "results.csv")) == 8
