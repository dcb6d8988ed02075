"""Ranking and metrics against counting, scikit-learn and the released code; embedding; protocol tables."""

import inspect
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.utils._python_dispatch import TorchDispatchMode

from prosutils import evaluation, metrics, ranking
from prosutils.config import Switches, load_preset
from prosutils.domains import Images, inverted_domains
from prosutils.evaluation import embed, evaluate, evaluate_all, model_transform, switch_options
from prosutils.files import UserError
from prosutils.metrics import query_metrics, retrieval_metrics
from prosutils.ranking import best_of, rank
from prosutils.splits import make_split, protocol_splits


def random_case(queries=30, gallery=250, classes=5, width=8, seed=0):
    """(query, query_labels, gallery, gallery_labels); lengths vary, so that cosine and Euclid differ."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    parts = []
    for number in (queries, gallery):
        labels = torch.randint(classes, (number,), generator=generator)
        lengths = torch.empty(number, 1).uniform_(0.5, 2, generator=generator)
        parts += [(centres[labels] + torch.randn(number, width, generator=generator)) * lengths, labels]
    return parts


def scores_one_by_one(query, gallery, similarity):
    query, gallery = query.double().numpy(), gallery.double().numpy()
    if similarity == "cosine":
        return np.array([[q @ g / np.linalg.norm(q) / np.linalg.norm(g) for g in gallery] for q in query])
    return np.array([[-((q - g) ** 2).sum() for g in gallery] for q in query])


def brute_force(query, query_labels, gallery, gallery_labels, k, similarity, ap_norm):
    """(mAP@k, Prec@k), counted rank by rank."""
    precisions, average_precisions = [], []
    for scores, label in zip(scores_one_by_one(query, gallery, similarity), query_labels.tolist(), strict=True):
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
        hits, total = 0, 0.0
        for position, i in enumerate(order, start=1):
            if gallery_labels[i] == label:
                hits += 1
                total += hits / position
        relevant = int((gallery_labels == label).sum())
        n = hits if ap_norm == "hits" else min(len(order), relevant)
        average_precisions.append(total / n if n else 0.0)
        precisions.append(hits / len(order))
    return np.mean(average_precisions), np.mean(precisions)


# ---- metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("ap_norm", ["hits", "relevant"])
@pytest.mark.parametrize("gallery", [250, 150, 30])  # above both cut-offs, between them, below both
def test_metrics_agree_with_counting(similarity, ap_norm, gallery):
    case = random_case(gallery=gallery, classes=3)
    result = retrieval_metrics(*case, similarity=similarity, ap_norm=ap_norm)
    assert list(result) == ["mAP@200", "Prec@200", "mAP@all", "Prec@100"]
    map_200, prec_200 = brute_force(*case, 200, similarity, ap_norm)
    map_all, _ = brute_force(*case, gallery, similarity, ap_norm)
    _, prec_100 = brute_force(*case, 100, similarity, ap_norm)
    assert list(result.values()) == pytest.approx([map_200, prec_200, map_all, prec_100], abs=1e-5)


def test_options_change_the_numbers():
    """Guards the test above: a case where an option made no difference would test nothing."""
    case = random_case()
    relevant = retrieval_metrics(*case, ks=(20,))
    assert relevant["mAP@20"] < retrieval_metrics(*case, ks=(20,), ap_norm="hits")["mAP@20"] - 0.01
    assert abs(relevant["mAP@all"] - retrieval_metrics(*case, similarity="euclidean")["mAP@all"]) > 0.01


def test_map_over_the_whole_gallery_is_scikit_learn_s():
    query, query_labels, gallery, gallery_labels = random_case()
    expected = [
        average_precision_score((gallery_labels == label).numpy(), scores)
        for scores, label in zip(scores_one_by_one(query, gallery, "cosine"), query_labels, strict=True)
    ]
    result = query_metrics(query, query_labels, gallery, gallery_labels)
    assert result["AP@all"].numpy() == pytest.approx(np.array(expected), abs=1e-5)


def released_case():
    """Features on which the released code was run: 120 queries, 900 gallery images, 12 classes, width 32."""

    def draw(name, rows, std):
        rng = np.random.default_rng(zlib.crc32(f"metrics/small/{name}".encode()))
        return torch.from_numpy(np.float32(std) * rng.standard_normal((rows, 32), dtype=np.float32))

    centres = draw("centers", 12, 1.0)
    query_labels = torch.from_numpy(np.random.default_rng(1).integers(0, 12, 120))
    gallery_labels = torch.from_numpy(np.random.default_rng(2).integers(0, 12, 900))
    return (
        centres[query_labels] + draw("q", 120, 1.6),
        query_labels,
        centres[gallery_labels] + draw("g", 900, 1.6),
        gallery_labels,
    )


def test_metrics_are_the_released_code_s():
    released = json.loads((Path(__file__).parent / "data" / "released_metrics.json").read_text())
    case = released_case()
    options = dict(similarity="euclidean", ap_norm="hits")
    assert retrieval_metrics(*case, **options) == pytest.approx(released["expected"], abs=1e-5)
    average_precision = query_metrics(*case, **options)["AP@200"]
    by_class = [float(average_precision[case[1] == label].mean()) for label in range(12)]
    assert by_class == pytest.approx(released["AP@200 by class"], abs=1e-5)


def test_a_ranking_worked_out_by_hand():
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    labels = [7, 3, 7, 7]
    result = query_metrics([[1.0, 0.0]], [7], gallery, labels, ks=(2, 3), ap_norm="hits")
    assert {name: float(value) for name, value in result.items()} == pytest.approx(
        {"AP@3": (1 + 2 / 3) / 2, "Prec@3": 2 / 3, "AP@all": (1 + 2 / 3 + 3 / 4) / 3, "Prec@2": 1 / 2}
    )
    result = query_metrics([[1.0, 0.0]], [7], gallery, labels, ks=(2,), ap_norm="relevant")
    assert float(result["AP@2"]) == pytest.approx(1 / 2)  # one hit of two possible


def test_one_ranking_gives_every_rule_of_average_precision():
    case = random_case(gallery=250, classes=2)  # more than 20 relevant images: the three rules differ
    rules = {f"mAP@20 by {name}" for name in ("hits", "min(k, R)", "R")}
    for norm, name in (("hits", "hits"), ("relevant", "min(k, R)")):
        result = retrieval_metrics(*case, ks=(20,), ap_norm=norm, all_rules=True)
        assert rules <= set(result) and result["mAP@20"] == result[f"mAP@20 by {name}"]
    assert result["mAP@20 by hits"] > result["mAP@20 by min(k, R)"] > result["mAP@20 by R"] + 0.01
    query, query_labels, gallery, gallery_labels = case
    _, index = rank(query, gallery, k=20)
    for i, label in enumerate(query_labels.tolist()):
        hit = (gallery_labels[index[i]] == label).double()
        total = (hit * hit.cumsum(0) / torch.arange(1, 21)).sum()
        by_r = query_metrics(*case, ks=(20,), all_rules=True)["AP@20 by R"][i]
        assert float(by_r) == pytest.approx(float(total / (gallery_labels == label).sum()), abs=1e-6)


def test_one_default_of_what_average_precision_divides_by():
    for function in (retrieval_metrics, query_metrics):
        assert inspect.signature(function).parameters["ap_norm"].default == "relevant"
    assert switch_options(Switches())["ap_norm"] == "relevant"


@pytest.mark.parametrize("common", [0.0, 100.0])
def test_euclidean_ranks_agree_with_float64_however_much_features_have_in_common(common):
    generator = torch.Generator().manual_seed(0)
    query, gallery = (common + 0.1 * torch.randn(n, 512, generator=generator) for n in (20, 2000))
    scores, index = rank(query, gallery, "euclidean")
    exact = -torch.cdist(query.double(), gallery.double()).square()
    best, order = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(index[:, :10], order[:, :10])
    torch.testing.assert_close(exact.gather(1, index), best, atol=1e-4, rtol=0)  # only what is as far changes places
    torch.testing.assert_close(scores.double(), best, atol=1e-4, rtol=0)


class NoFloat64(TorchDispatchMode):
    """Refuses what Apple's GPUs (mps) cannot compute."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        assert not (torch.is_tensor(out) and out.dtype == torch.float64), func
        return out


def test_metrics_need_no_float64():
    with NoFloat64():
        retrieval_metrics(*random_case(), similarity="euclidean", all_rules=True)


@pytest.mark.parametrize("k", [0, -3, 1.5, True])
def test_a_number_of_answers_below_one_is_refused(k):
    query, _, gallery, _ = random_case()
    with pytest.raises(UserError, match="k is .*1 or more"):
        rank(query, gallery, k=k)


def test_labels_and_features_that_are_no_numbers():
    query, labels, gallery, _ = random_case()
    with pytest.raises(UserError, match="gallery labels are whole numbers.*not text"):
        retrieval_metrics(query, labels, gallery, ["cat"] * len(gallery))
    with pytest.raises(UserError, match="query features are numbers"):
        rank([[1.0, 2.0], [1.0]], gallery)


def test_a_query_without_relevant_image_counts_zero():
    gallery = torch.eye(3)
    result = retrieval_metrics(gallery[:2], [0, 9], gallery, [0, 1, 2])
    assert result["mAP@all"] == result["mAP@200"] == pytest.approx(0.5)
    assert result["Prec@200"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_equal_scores_keep_gallery_order(similarity):
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).repeat(50, 1)
    _, index = rank(torch.tensor([[1.0, 0.0]]), gallery, similarity)
    assert index[0].tolist() == list(range(1, 200, 2)) + list(range(0, 200, 2))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_rank_returns_the_best_first_with_their_scores(similarity):
    query, _, gallery, _ = random_case()
    expected = scores_one_by_one(query, gallery, similarity)
    scores, index = rank(query, gallery, similarity, k=10)
    assert scores.shape == index.shape == (30, 10)
    assert np.allclose(scores, -np.sort(-expected, axis=1)[:, :10], atol=1e-4)
    assert np.allclose(np.take_along_axis(expected, index.numpy(), 1), scores, atol=1e-4)
    assert rank(query, gallery, similarity, k=1000)[1].shape == (30, 250)


def test_blocks_do_not_change_the_numbers(monkeypatch):
    case = random_case()
    whole, (_, ranks) = query_metrics(*case), rank(case[0], case[2])
    monkeypatch.setattr(ranking, "BLOCK_SCORES", 7 * 250)  # 7 queries at a time, 2 in the last block
    for name, values in query_metrics(*case).items():
        assert torch.allclose(values, whole[name], atol=1e-6)
    assert torch.equal(rank(case[0], case[2])[1], ranks)


def test_memory_is_bounded_by_the_block(monkeypatch):
    """The largest tensor ever sorted or counted is one block, whatever the number of queries."""
    monkeypatch.setattr(ranking, "BLOCK_SCORES", 2000)
    sizes = []
    counted = metrics._block_metrics
    monkeypatch.setattr(
        metrics, "_block_metrics", lambda hit, *options: sizes.append(hit.numel()) or counted(hit, *options)
    )
    retrieval_metrics(*random_case(queries=100, gallery=300))
    assert max(sizes) <= 2000 and sum(sizes) == 100 * 300


def test_rank_keeps_no_block_in_memory(monkeypatch):
    """A slice of a block is a view that holds all of it: with 22,500 queries and 36,600 images, 10 GB."""
    monkeypatch.setattr(ranking, "BLOCK_SCORES", 2000)
    scores, index = rank(*random_case(queries=100, gallery=300)[::2], k=5)
    assert scores.untyped_storage().nbytes() == 100 * 5 * 4 and index.untyped_storage().nbytes() == 100 * 5 * 8


def test_the_best_are_those_of_a_stable_sort_however_many_are_equal():
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        values, k = 2 + seed % 7, 1 + seed % 20
        scores = torch.randint(values, (9, 50), generator=generator).float()
        expected = scores.sort(dim=1, descending=True, stable=True)
        found, index = best_of(scores, k)
        assert torch.equal(found, expected.values[:, :k]) and torch.equal(index, expected.indices[:, :k])


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 20, 90, None])
def test_a_gallery_in_parts_is_ranked_as_one(similarity, k, monkeypatch):
    """Whole numbers: products are exact, and many scores equal."""
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randint(-2, 3, (n, 3), generator=generator).float() + 0.5 for n in (23, 310))
    scores, index = rank(query, gallery, similarity, k)
    monkeypatch.setattr(ranking, "CHUNK", 64)
    monkeypatch.setattr(ranking, "BLOCK_SCORES", 300)
    in_parts = rank(query, gallery, similarity, k)
    assert torch.allclose(in_parts[0], scores, atol=1e-5)
    if similarity == "cosine":  # the centre of Euclid's distances is no whole number
        assert torch.equal(in_parts[1], index)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_metrics_at_k_need_no_whole_ranking(similarity, monkeypatch):
    case, options = random_case(gallery=900), dict(similarity=similarity, all_rules=True)
    whole = query_metrics(*case, **options)
    monkeypatch.setattr(ranking, "CHUNK", 128)
    best = query_metrics(*case, **options, whole=False)
    assert set(whole) - set(best) == {"AP@all"}
    for name, values in best.items():
        assert torch.allclose(values, whole[name], atol=1e-6), name


def test_relevant_images_are_counted_in_the_whole_gallery():
    """The best two answers say nothing of how many there are."""
    gallery, labels = torch.eye(6)[[0, 0, 0, 1, 2, 3]], [7, 7, 7, 7, 2, 3]
    result = retrieval_metrics(torch.eye(6)[:1], [7], gallery, labels, ks=(2,), all_rules=True, whole=False)
    assert result == pytest.approx(
        {"mAP@2": 1.0, "Prec@2": 1.0, "mAP@2 by hits": 1.0, "mAP@2 by min(k, R)": 1.0, "mAP@2 by R": 0.5}
    )


def test_features_in_a_file_are_ranked_without_reading_it_whole(tmp_path, monkeypatch):
    query, _, gallery, _ = random_case(gallery=5000)
    np.save(tmp_path / "gallery.npy", gallery)
    monkeypatch.setattr(ranking, "CHUNK", 512)
    mapped = torch.from_numpy(np.load(tmp_path / "gallery.npy", mmap_mode="c"))
    assert torch.equal(rank(query, mapped, k=50)[1], rank(query, gallery, k=50)[1])


@pytest.mark.parametrize("queries", [1, 500])
def test_few_queries_are_ranked_as_many(queries):
    """Cosines of fewer queries than the width are divided by the lengths of the gallery, of more the gallery is."""
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(queries, 64, generator=generator), torch.randn(900, 64, generator=generator)
    gallery *= torch.rand(900, 1, generator=generator) * 1e3
    gallery[7] = 0
    scores, index = rank(query, gallery)
    expected = torch.nn.functional.cosine_similarity(query.double()[:, None], gallery.double()[None], dim=2)
    torch.testing.assert_close(scores.double(), expected.gather(1, index), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.double(), expected.sort(1, descending=True).values, atol=1e-5, rtol=0)


def test_large_numbers_are_finite_ones():
    """Their sum is not: it is no reason to refuse them."""
    features = torch.full((3, 8), 3e38) * torch.tensor([[1.0], [1.0], [0.1]])
    assert torch.equal(ranking.as_features("query", features), features)
    features[1, 2] = torch.nan
    with pytest.raises(UserError, match="1 of 3 query features are not finite numbers, the first at row 1"):
        ranking.as_features("query", features)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_faiss_gives_the_same_ranking(similarity):
    pytest.importorskip("faiss")
    query, _, gallery, _ = random_case(gallery=2000)
    ours, theirs = (rank(query, gallery, similarity, 50, engine) for engine in ranking.ENGINES)
    assert torch.allclose(ours[0], theirs[0], atol=1e-4)
    assert (ours[1] == theirs[1]).float().mean() > 0.99


def test_faiss_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match="needs the package faiss-cpu: pip install"):
        rank(torch.eye(2), torch.eye(2), engine="faiss")
    with pytest.raises(UserError, match="engine is 'torch' or 'faiss', not 'annoy'"):
        rank(torch.eye(2), torch.eye(2), engine="annoy")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c[0].__setitem__((3, 0), float("nan")), "1 of 30 query features are not finite .* row 3"),
        (lambda c: c[2].__setitem__((5, 1), float("inf")), "gallery features are not finite"),
        (lambda c: c.__setitem__(0, c[0][:, :4]), "width 4, gallery features 8"),
        (lambda c: c.__setitem__(1, c[1][:7]), "30 query features need one label each"),
        (lambda c: c.__setitem__(3, c[3][:, None]), "250 gallery features need one label each"),
        (lambda c: c.__setitem__(2, c[2][:0]), "gallery features are .number, width. with at least one row"),
        (lambda c: c.__setitem__(0, c[0][0]), "query features are"),
    ],
)
def test_wrong_features_and_labels(change, message):
    case = random_case()
    change(case)
    with pytest.raises(UserError, match=message):
        retrieval_metrics(*case)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"similarity": "dot"}, "'cosine' or 'euclidean', not 'dot'"),
        ({"ap_norm": "all"}, "'hits' or 'relevant', not 'all'"),
        ({"ks": (0, 5)}, "1 or more"),
        ({"ks": ()}, "1 or more"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        retrieval_metrics(*random_case(), **options)


# ---- embedding and protocols -------------------------------------------------------------------------------


def test_bootstrap_over_classes():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] * 4)
    values = torch.tensor([1.0] * 10 + [-1.0] * 2 + [0.5] * 4)
    found = metrics.class_bootstrap(values, labels, draws=5000)
    assert found.mean == pytest.approx(float(values.mean())) and found.low == -1 and found.high == 1
    counts, sums = np.array([10, 2, 4]), np.array([10.0, -2.0, 2.0])
    drawn = np.random.default_rng(0).integers(3, size=(200_000, 3))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    assert found.p == pytest.approx(2 * (means <= 0).mean(), abs=0.03)
    # names of classes do not matter, nor the order of queries; the same seed gives the same interval
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert metrics.class_bootstrap(values[order], 7 - labels[order] * 3, draws=50).mean == pytest.approx(found.mean)
    assert metrics.class_bootstrap(values, labels, draws=5000) == found
    wider, narrower = (metrics.class_bootstrap(torch.randn(300), torch.arange(300) // 30, level=x) for x in (0.99, 0.5))
    assert wider.high - wider.low > narrower.high - narrower.low
    assert metrics.class_bootstrap(torch.ones(6), torch.arange(6), draws=1000).p == 1 / 1000  # no draw reaches zero
    assert metrics.class_bootstrap(torch.zeros(6), torch.arange(6)).p == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(labels=torch.zeros(4)), "one class"),
        (dict(labels=torch.arange(3)), "label each"),
        (dict(values=torch.tensor([0.0, float("nan"), 1, 2])), "finite"),
        (dict(level=1.0), "level"),
        (dict(draws=0), "draw"),
    ],
)
def test_bootstrap_refuses_what_it_cannot_draw(change, message):
    with pytest.raises(UserError, match=message):
        metrics.class_bootstrap(**dict(values=torch.arange(4.0), labels=torch.arange(4)) | change)


def test_embed_takes_tensors_datasets_and_pil_images(toy, toy_model):
    rows = toy.rows(["emoji"], ["gem", "house"])
    dataset = Images(toy, rows, model_transform(toy_model))
    from_dataset = embed(toy_model, dataset, batch_size=3)
    from_tensor = embed(toy_model, torch.stack([image for image, _, _ in dataset]), batch_size=4)
    from_pil = embed(toy_model, [toy.load(row) for row in rows])
    assert from_dataset.shape == (len(rows), 48) and not from_dataset.requires_grad
    assert torch.equal(from_dataset, from_tensor) and torch.equal(from_dataset, from_pil)


def test_embed_uses_evaluation_mode_and_restores_the_model_s(toy_model):
    images = torch.zeros(2, 3, 16, 16)
    for mode in (True, False):
        toy_model.train(mode)
        embed(toy_model, images)
        assert toy_model.training is mode and toy_model.modes == {False}
    toy_model.train()
    toy_model.encode_image = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError):
        embed(toy_model, images)
    assert toy_model.training


def test_embed_without_images(toy_model):
    with pytest.raises(UserError, match="no image"):
        embed(toy_model, [])


def test_evaluate_is_the_metrics_of_the_split_s_rows(toy, toy_model):
    split = make_split(toy, gallery="mixed", unseen_classes=["gem", "house"], val_classes=["ball"], seed=4)
    table = evaluate(toy_model, split, extra={"shots": 16, "seed": 9})
    assert list(table.columns) == [
        "method",
        "protocol",
        "unseen_domain",
        "gallery",
        "seed",
        "queries",
        "gallery_size",
        "switches",
        "mAP@200",
        "Prec@200",
        "mAP@all",
        "Prec@100",
        "mAP@200 by hits",
        "mAP@200 by min(k, R)",
        "mAP@200 by R",
        "shots",
    ]
    row = table.iloc[0].to_dict()
    expected = {
        "method": "Toy",
        "protocol": "UCDR",
        "gallery": "mixed",
        "unseen_domain": "sketch",
        "seed": 9,
        "shots": 16,
    }
    assert len(table) == 1 and expected.items() <= row.items()
    assert row["queries"] == len(split.query) and row["gallery_size"] == len(split.gallery)

    def features(rows):
        return embed(toy_model, [toy.load(i) for i in rows])

    expected = retrieval_metrics(
        features(split.query),
        toy.class_index[split.query],
        features(split.gallery),
        toy.class_index[split.gallery],
        ap_norm="relevant",
    )
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert 0 < row["mAP@all"] < 1


def test_evaluate_follows_the_switches(toy, toy_model, monkeypatch):
    split = make_split(toy, unseen_classes=["gem", "house"], val_classes=["ball"])
    asked = []

    def noting(*features, **options):
        asked.append((options["similarity"], options["ap_norm"]))
        return retrieval_metrics(*features, **options)

    monkeypatch.setattr(evaluation, "retrieval_metrics", noting)
    evaluate(toy_model, split)
    toy_model.config = load_preset("mini-near", switches=Switches(similarity="released"))
    evaluate(toy_model, split)
    evaluate(toy_model, split, Switches(average_precision="released"))
    assert asked == [("cosine", "relevant"), ("euclidean", "relevant"), ("cosine", "hits")]


def test_released_polarity_inverts_sketches_only(toy, toy_model):
    released = Switches(polarity="released")
    for domain in ("sketch", "emoji"):
        rows = toy.rows([domain], ["gem"])
        for (before, *_), (after, *_) in zip(
            Images(toy, rows, np.asarray), Images(toy, rows, np.asarray, inverted_domains(released)), strict=True
        ):
            assert np.array_equal(after, 255 - before if domain == "sketch" else before)
    split = make_split(toy, unseen_classes=["gem", "house"], val_classes=["ball"])
    tables = [evaluate(toy_model, split, switches) for switches in (released, Switches())]
    assert tables[0]["mAP@all"].item() != tables[1]["mAP@all"].item()


def test_all_protocols_at_once_embed_every_image_once(toy, toy_model):
    splits = protocol_splits(toy, "sketch", unseen_classes=["gem", "house"], val_classes=["ball"])
    together = evaluate_all(toy_model, splits)
    needed = {row for split in splits for row in torch.cat([split.query, split.gallery]).tolist()}
    assert toy_model.seen == len(needed)
    assert list(together["protocol"]) == ["UCDR", "UCDR", "UcCDR", "UdCDR"]
    assert list(together["gallery"]) == ["unseen", "mixed", "unseen", "seen"]
    for i, split in enumerate(splits):
        alone = evaluate(toy_model, split).iloc[0]
        assert together.iloc[i].to_dict() == pytest.approx(alone.to_dict())


def test_a_model_that_breaks_is_reported(toy, toy_model):
    toy_model.scale.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        evaluate(toy_model, make_split(toy, unseen_classes=["gem", "house"], val_classes=["ball"]))
