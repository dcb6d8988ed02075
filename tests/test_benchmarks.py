"""The published benchmarks: shipped classes, exact protocol sizes, spellings, and a run from end to end."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ToyModel
from PIL import Image

from prosutils import cli
from prosutils.config import PRESETS, Switches, load_preset
from prosutils.domains import ImageDomains
from prosutils.evaluation import evaluate
from prosutils.experiment import by_held_out_domain
from prosutils.files import UserError
from prosutils.published import benchmark_names, class_key, load_benchmark

ROOT = Path(__file__).parents[1]
PROTOCOLS = ["UCDR unseen", "UCDR mixed", "UcCDR unseen", "UdCDR seen"]


def table(counts, root="data"):
    """An `ImageDomains` without files: counts is {(domain, class): number of images}."""
    domains, classes = (sorted({key[i] for key in counts}) for i in (0, 1))
    cells = sorted(counts)
    paths = [Path(root) / domain / name / f"{i:04d}.jpg" for domain, name in cells for i in range(counts[domain, name])]
    repeats = torch.tensor([counts[cell] for cell in cells])
    numbers = [torch.tensor([names.index(cell[i]) for cell in cells]) for i, names in ((0, domains), (1, classes))]
    return ImageDomains(
        Path(root),
        tuple(domains),
        tuple(classes),
        paths,
        *(number.repeat_interleave(repeats) for number in numbers),
        [],
    )


def domainnet_counts(seed=0, low=10, high=26):
    """Every class in every domain of DomainNet, 10 to 25 images."""
    benchmark, rng = load_benchmark("domainnet"), np.random.default_rng(seed)
    names = [name for names in benchmark.classes.values() for name in names]
    return {(domain, name): int(rng.integers(low, high)) for domain in benchmark.images for name in names}


@pytest.fixture(scope="module")
def domainnet():
    return table(domainnet_counts())


# ---- classes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, train, val, test",
    [
        ("domainnet", 245, 55, 45),
        ("sketchy", 93, 11, 21),
        ("sketchy-random", 90, 10, 25),
        ("sketchy-sempcyc", 100, 0, 25),
        ("tuberlin", 200, 20, 30),
        ("tuberlin-sempcyc", 220, 0, 30),
    ],
)
def test_classes_are_shipped_complete_and_disjoint(name, train, val, test):
    classes = load_benchmark(name).classes
    assert [len(classes[part]) for part in ("train", "val", "test")] == [train, val, test]
    together = [class_key(x) for names in classes.values() for x in names]
    assert len(set(together)) == train + val + test


@pytest.mark.parametrize("name", ["domainnet", "sketchy", "tuberlin"])
def test_test_classes_are_those_of_the_released_code(name):
    path = ROOT.parent / "shared" / "splits" / f"{name}.json"
    if not path.exists():
        pytest.skip("needs the published class lists")
    published, shipped = json.loads(path.read_text()), load_benchmark(name).classes
    assert shipped["test"] == published.get("test", published.get("test_eccv2018", published.get("test_random")))
    for part in ("train", "val"):
        assert shipped[part] == published.get(part, shipped[part])


@pytest.mark.parametrize(
    "benchmark, folder, name",
    [
        ("domainnet", "the eiffel tower", "The_Eiffel_Tower"),
        ("domainnet", "T_shirt", "t-shirt"),
        ("sketchy", "hot-air_balloon", "hot_air_balloon"),
        ("sketchy", "jack-o-lantern", "jack_o_lantern"),
        ("sketchy", "car (sedan)", "car_(sedan)"),
        ("sketchy", "mouse", "mouse"),
        ("tuberlin", "flying bird", "flying_bird"),
        ("tuberlin", "flyingbird", "flying_bird"),
        ("tuberlin", "mouse", "mouse_(animal)"),
        ("tuberlin", "computermouse", "computer_mouse"),
        ("tuberlin", "pipe", "pipe_(for_smoking)"),
        ("tuberlin", "spidar", "spider"),
        ("tuberlin", "yeti", "yeti"),
    ],
)
def test_spellings_of_the_archives_are_one_class(benchmark, folder, name):
    assert load_benchmark(benchmark).class_name(folder) == name


@pytest.mark.parametrize(
    "ours, theirs, share, common",
    [
        ("sketchy-random", "sketchy-sempcyc", 0.80, {"bell", "squirrel", "tank", "wheelchair"}),
        ("tuberlin", "tuberlin-sempcyc", 0.88, {"rollerblades"}),
    ],
)
def test_the_two_random_splits_are_shipped_and_warn(ours, theirs, share, common):
    """SEM-PCYC's test classes are what numpy leaves over of the sorted classes, with the seed its code sets."""
    splits = [load_benchmark(name) for name in (ours, theirs)]
    every = [sorted(x for names in split.classes.values() for x in names) for split in splits]
    assert every[0] == every[1] and set(splits[0].classes["test"]) & set(splits[1].classes["test"]) == common
    drawn = np.random.RandomState(0).choice(every[1], int(share * len(every[1])), replace=False)
    assert set(every[1]) - set(drawn) == set(splits[1].classes["test"])
    for split, other in zip(splits, reversed(splits), strict=True):
        data = table({(domain, x): 5 for domain in split.images for x in every[0]})
        with pytest.warns(UserWarning, match=f"shares {len(common)} of {len(split.classes['test'])}.*{other.name}"):
            (made,) = split.splits(data, None)
        assert set(made.unseen_classes) == set(split.classes["test"])


def test_aliases_lead_to_classes():
    for name in benchmark_names():
        benchmark = load_benchmark(name)
        known = {x for names in benchmark.classes.values() for x in names}
        assert set(benchmark.aliases.values()) <= known and all(key == class_key(key) for key in benchmark.aliases)


# ---- protocols ---------------------------------------------------------------------------------------------


def released_sizes(counts, held_out):
    """Sizes by the released code's own arithmetic (domainnet.py): 92 % rounded down, first 45 classes, 25 or 10 %."""
    classes = load_benchmark("domainnet").classes
    seen, share = classes["train"] + classes["val"], 0.1 if held_out == "quickdraw" else 0.25

    def unseen(domain):
        return sum(counts[domain, name] for name in classes["test"])

    kept = sum(counts["real", name] - int(0.92 * counts["real", name]) for name in seen)
    other = load_benchmark("domainnet").query_domain[held_out]
    sample = [sum(int(share * counts[domain, name]) for name in seen[:45]) for domain in (held_out, "real")]
    return dict(
        zip(
            PROTOCOLS,
            [
                (unseen(held_out), unseen("real")),
                (unseen(held_out), unseen("real") + kept),
                (unseen(other), unseen("real")),
                tuple(sample),
            ],
            strict=True,
        )
    )


@pytest.mark.parametrize("held_out", ["sketch", "quickdraw", "painting", "infograph", "clipart"])
def test_sizes_follow_the_released_arithmetic(domainnet, held_out):
    benchmark = load_benchmark("domainnet")
    splits = benchmark.splits(domainnet, held_out)
    sizes = benchmark.compare_sizes(splits)
    assert {kind: (row["queries"], row["gallery"]) for kind, row in sizes.iterrows()} == released_sizes(
        domainnet_counts(), held_out
    )
    assert [split.query_domains for split in splits] == [
        (held_out,),
        (held_out,),
        (benchmark.query_domain[held_out],),
        (held_out,),
    ]


def test_published_sizes_are_those_of_the_logs():
    sizes = pd.DataFrame(load_benchmark("domainnet").sizes)
    assert sizes.loc["UCDR mixed", "sketch"] == [9729, 36600] and sizes.loc["UCDR unseen", "clipart"] == [6394, 24387]
    assert sizes.loc["UdCDR seen", "quickdraw"] == [2250, 2332] and sizes.loc["UdCDR seen", "painting"] == [2534, 5857]
    assert load_benchmark("sketchy").sizes["none"]["UcCDR unseen"] == [12694, 10453]


def test_quickdraw_has_its_published_sizes():
    """Every class of quickdraw has 500 images, so its published query sizes follow from the protocol alone."""
    benchmark = load_benchmark("domainnet")
    counts = {cell: 500 if cell[0] == "quickdraw" else 12 for cell in domainnet_counts()}
    sizes = benchmark.compare_sizes(benchmark.splits(table(counts), "quickdraw"))
    assert (sizes["queries"] == sizes["published queries"])[["UCDR unseen", "UCDR mixed", "UdCDR seen"]].all()


@pytest.mark.parametrize("held_out", ["sketch", "quickdraw"])
def test_no_gallery_image_is_trained_on_unless_wished(domainnet, held_out):
    benchmark = load_benchmark("domainnet")
    for split in benchmark.splits(domainnet, held_out):
        assert not torch.isin(split.gallery, split.train).any() and not torch.isin(split.query, split.train).any()
    leaking = benchmark.splits(domainnet, held_out, switches=Switches(udcdr_gallery="released"))
    unseen, mixed, _, seen = leaking
    assert torch.isin(seen.gallery, seen.train).all()
    assert not torch.isin(mixed.gallery, mixed.train).any()
    assert len(seen.gallery) == len(benchmark.splits(domainnet, held_out)[3].gallery)
    if held_out == "sketch":  # 25 % of 45 classes; quickdraw's 10 % are no more than the 8 % here
        assert len(unseen.train) > len(benchmark.splits(domainnet, held_out)[0].train)


def test_released_file_order_repeats_numpy_s_legacy_draws(tmp_path):
    """As domainnet.py draws: per class its number as seed, over the order in which the file system lists the files."""
    benchmark = load_benchmark("domainnet")
    names = benchmark.classes["train"][:3] + benchmark.classes["val"][:2] + benchmark.classes["test"][:3]
    write_folder(tmp_path, benchmark.images, names, 14)
    data = benchmark.open(tmp_path)
    split = benchmark.splits(data, "sketch", switches=Switches.released())[1]
    kept = set()
    for number, name in enumerate(benchmark.classes["train"][:3] + benchmark.classes["val"][:2]):
        files = [path.name for path in (tmp_path / "real" / name).iterdir()]
        np.random.seed(number)
        kept |= {(name, x) for x in set(files) - set(np.random.choice(files, int(0.92 * len(files)), replace=False))}
    found = {(data.paths[row].parts[-2], data.paths[row].name) for row in split.gallery}
    assert kept == {cell for cell in found if cell[0] in benchmark.classes["train"] + benchmark.classes["val"]}


def test_validation_classes_train_in_the_last_run_only(domainnet):
    benchmark = load_benchmark("domainnet")
    tuning, final = (benchmark.splits(domainnet, "sketch", classes)[0] for classes in ("train", "train+val"))
    assert [len(tuning.seen_classes), len(tuning.val_classes), len(tuning.unseen_classes)] == [245, 55, 45]
    assert [len(final.seen_classes), len(final.val_classes), len(final.unseen_classes)] == [300, 0, 45]
    assert len(tuning.val_query) and not len(final.val_query)
    assert torch.equal(tuning.query, final.query) and torch.equal(tuning.gallery, final.gallery)


@pytest.mark.parametrize("name, query", [("sketchy", "sketch"), ("sketchy-random", "sketch"), ("tuberlin", "sketches")])
def test_sketchy_and_tuberlin_are_sketch_to_photo(name, query):
    benchmark = load_benchmark(name)
    names = [x for part in benchmark.classes.values() for x in part]
    (split,) = benchmark.splits(table({(domain, x): 5 for domain in benchmark.images for x in names}), None)
    assert (split.protocol, split.query_domains, split.gallery_domain) == ("UcCDR", (query,), benchmark.gallery_domain)
    assert len(split.train_domains) == 2 and len(split.query) == 5 * len(benchmark.classes["test"])


def test_a_query_without_relevant_image_scores_nothing():
    """A gallery that lacks a query's class: the query counts, with 0, in every metric."""
    from prosutils.metrics import query_metrics

    metrics = query_metrics(torch.eye(2), [0, 1], torch.eye(2), [0, 2], ap_norm="relevant")
    assert all(values.isfinite().all() and values[1] == 0 for values in metrics.values()) and metrics["AP@all"][0] == 1


def test_unseen_classes_without_gallery_image_are_refused(domainnet):
    counts = {cell: number for cell, number in domainnet_counts().items() if cell != ("real", "giraffe")}
    with pytest.raises(UserError, match="gallery domain real has no image of giraffe"):
        load_benchmark("domainnet").splits(table(counts), "sketch")


def test_missing_domains_classes_and_images_are_named_with_counts():
    benchmark = load_benchmark("domainnet")
    counts = {
        cell: number
        for cell, number in domainnet_counts().items()
        if cell[0] != "infograph" and cell[1] not in ("zebra", "yoga")
    } | {("real", "yeti"): 3}
    told = " ".join(benchmark.faults(table(counts).counts()) + benchmark.surplus(table(counts).counts()))
    assert "Domain infograph is missing (53,201 images of 345 classes)." in told
    assert "Domain real lacks 2 of 345 classes: zebra, yoga." in told and "does not have: yeti" in told
    assert "Domain quickdraw holds" in told and "of 172,500 images" in told
    with pytest.raises(UserError, match=r"lacks 1 of the 6 domains of domainnet: infograph \(53,201 images\)"):
        benchmark.splits(table(counts), "sketch")
    with pytest.raises(UserError, match="holds out one of sketch, quickdraw, painting, infograph, clipart, not real"):
        benchmark.splits(table(counts), "real")
    with pytest.raises(UserError, match="no published splits"):
        load_benchmark("pacs").splits(table(counts), "sketch")


def test_a_complete_copy_has_no_faults():
    benchmark = load_benchmark("sketchy")
    names = [x for part in benchmark.classes.values() for x in part]
    counts = {(domain, x): -(-images // len(names)) for domain, images in benchmark.images.items() for x in names}
    complete = table(counts).counts()
    assert benchmark.faults(complete) == benchmark.surplus(complete) == []
    beside = table(counts | {("photo", "ant"): 3}).counts()  # as the official archive has
    assert benchmark.faults(beside) == [] and "photo" in benchmark.surplus(beside)[0]


# ---- presets and the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["domainnet", "sketchy", "tuberlin"])
def test_presets_have_the_released_hyper_parameters(name):
    config, benchmark = load_preset(name), load_benchmark(PRESETS[name].dataset)
    assert (config.stage1.epochs, config.stage1.batch_size, config.stage1.lr) == (1, 400, 1e-4)
    assert (config.stage2.batch_size, config.stage2.lr_simulator, config.stage2.decay_epochs) == (50, 1e-4, 20)
    assert config.context_tokens == 16 and config.backbone == "ViT-B-32-quickgelu" and config.pretrained == "openai"
    assert config.gallery_domain == benchmark.gallery_domain
    assert str(config.unseen_domain).lower() in benchmark.query_domain


def test_training_classes_are_train_or_all():
    with pytest.raises(UserError, match="takes: train, train"):
        load_preset("mini", training_classes="all")


def write_folder(root, domains, names, images):
    rng = np.random.default_rng(0)
    for domain in domains:
        for name in names:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for i in range(images):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{domain}_{i:03d}.png")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """DomainNet's domains and a few of its classes, with other spellings, 2 images each, infograph one: short runs."""
    root, benchmark = tmp_path_factory.mktemp("DomainNet"), load_benchmark("domainnet")
    names = benchmark.classes["train"][:4] + ["the eiffel tower", "t shirt"] + benchmark.classes["val"][:2]
    names += benchmark.classes["test"][:2]
    write_folder(root, set(benchmark.images) - {"infograph"}, names, 2)
    write_folder(root, ["infograph"], names, 1)
    (root / "notes").mkdir()
    return root


SMALL_SETTINGS = dict(
    pretrained=None,
    workers=0,
    stage1=dict(batch_size=10),
    stage2=dict(batch_size=10, epochs=1),
    context_tokens=2,
    simulator_layers=1,
)
SMALL = (
    "--pretrained None --workers 0 --stage1.batch-size 10 --stage2.batch-size 10 --stage2.epochs 1 --context-tokens 2 "
    "--simulator-layers 1"
).split()


def test_domainnet_runs_from_end_to_end(stand_in, tmp_path, capsys):
    torch.set_num_threads(1)
    cli.main(["train", "--preset", "domainnet", "--data", str(stand_in), "--artifacts", str(tmp_path), *SMALL])
    out = capsys.readouterr().out
    assert "8 seen, 0 validation, 2 unseen classes" in out
    for published in ("24387", "36600", "9729", "22500", "1883", "5857"):
        assert published in out
    assert "Domain real lacks 335 of 345 classes" in out and "Domain real holds 20 of 175,327 images" in out
    table = pd.read_csv(tmp_path / "results.csv")
    assert set(table.protocol + " " + table.gallery) == set(PROTOCOLS) and len(table) == 8
    assert table[table.protocol == "UCDR"].queries.eq(4).all() and set(table.gallery_size) == {4, 12}

    cli.main(
        [
            "train",
            "--preset",
            "domainnet",
            "--method",
            "zero-shot",
            "--data",
            str(stand_in),
            "--artifacts",
            str(tmp_path),
            *SMALL,
            "--training-classes=train",
        ]
    )  # a run that only chooses adds its own rows
    both = pd.read_csv(tmp_path / "results.csv")
    assert len(both) == 12
    for method in ("Zero-shot CLIP", "ProS"):
        ours = by_held_out_domain(both, "domainnet", method, "UCDR", "mixed")
        expected = table[(table.method == method) & (table.gallery == "mixed")]["mAP@200"]
        assert ours.index.tolist() == ["sketch"] and ours.tolist() == pytest.approx(expected.tolist())
    assert by_held_out_domain(both, "domainnet", "ProS", "UcCDR", "mixed").empty


def test_tuning_and_unseen_classes_through_the_same_command(stand_in, tmp_path, capsys):
    config = load_preset("domainnet", backbone="mini", training_classes="train", **SMALL_SETTINGS)
    run = cli.experiment(config, cli.Place(data=stand_in, artifacts=tmp_path))
    assert len(run.split.val_classes) == 2 and {"The_Eiffel_Tower", "t-shirt"} <= set(run.split.seen_classes)
    assert run.data.domains == tuple(sorted(load_benchmark("domainnet").images))
    with pytest.raises(SystemExit, match="fixed unseen classes"):
        cli.main(["train", "--preset", "domainnet", "--data", str(stand_in), "--unseen-classes", "bat", *SMALL])


def test_results_without_held_out_domain_replace_each_other(tmp_path, capsys):
    benchmark = load_benchmark("sketchy")
    names = benchmark.classes["train"][:3] + benchmark.classes["test"][:2]
    write_folder(tmp_path / "Sketchy", benchmark.images, names, 4)
    command = [
        "train",
        "--preset",
        "sketchy",
        "--method",
        "zero-shot",
        "--data",
        str(tmp_path / "Sketchy"),
        "--artifacts",
        str(tmp_path),
        "--backbone=mini",
        "--pretrained=None",
        "--workers=0",
    ]
    for _ in range(2):
        cli.main(command)
    table = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    assert len(table) == 1 and table.unseen_domain[0] == "none" and table.protocol[0] == "UcCDR"


def test_the_toy_model_is_measured_on_a_stand_in(stand_in):
    benchmark = load_benchmark("domainnet")
    for split in benchmark.splits(benchmark.open(stand_in), "clipart"):
        assert 0 <= evaluate(ToyModel(), split)["mAP@200"][0] <= 1
