"""What rankings are worth, from tensors alone.

Shapes: Q queries, G gallery images, D feature width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .files import UserError
from .ranking import check_features, check_k, rank, ranked_blocks

#: What AP@k may be divided by, as tables name it: the hits within k, all that could be hit there, all relevant images.
AP_RULES = {"hits": "hits", "min(k, R)": "relevant", "R": "all"}


def retrieval_metrics(
    query: torch.Tensor,
    query_labels: torch.Tensor,
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    ks: Sequence[int] = (100, 200),
    similarity: str = "cosine",
    ap_norm: str = "relevant",
    all_rules: bool = False,
    whole: bool = True,
):
    """`query_metrics`, each averaged over the queries: {"mAP@200", "Prec@200", "mAP@all", "Prec@100"}."""
    per_query = query_metrics(query, query_labels, gallery, gallery_labels, ks, similarity, ap_norm, all_rules, whole)
    means = {name: float(values.cpu().numpy().mean(dtype="float64")) for name, values in per_query.items()}
    return {name.replace("AP@", "mAP@"): mean for name, mean in means.items()}


def query_metrics(
    query: torch.Tensor,
    query_labels: torch.Tensor,
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    ks: Sequence[int] = (100, 200),
    similarity: str = "cosine",
    ap_norm: str = "relevant",
    all_rules: bool = False,
    whole: bool = True,
):
    """Average precision and precision of every query: {"AP@200", "Prec@200", "AP@all", "Prec@100"}, each [Q].

    query [Q, D] with labels [Q], gallery [G, D] with labels [G]. With h(r) = 1 where the image at rank r has
    the query's label,

        Prec@k = sum_{r<=k} h(r) / k        AP@k = sum_{r<=k} h(r) Prec@r / n

    and n is all that could be hit, min(k, R) with R relevant images in the gallery (ap_norm="relevant"), or the number
    of hits within k (ap_norm="hits", released code: utils/mAP.py). AP is taken at the largest of `ks` and over the
    whole gallery. all_rules=True adds AP@k of the same ranking by every rule: "AP@200 by hits", "AP@200 by min(k, R)"
    and "AP@200 by R". whole=False leaves "AP@all" out, for which the whole gallery is sorted: a large gallery takes a
    tenth of the time then. A gallery smaller than k is ranked whole, and k is its size. A query without relevant image
    scores 0.

    Raises UserError for shapes that do not fit, features that are not finite, and unknown options.
    """
    query, gallery = check_features(query, gallery)
    query_labels = check_labels("query", query_labels, query)
    gallery_labels = check_labels("gallery", gallery_labels, gallery)
    if ap_norm not in ("hits", "relevant"):
        raise UserError(f"ap_norm is 'hits' or 'relevant', not {ap_norm!r}.")
    if not ks or min(ks) < 1:
        raise UserError(f"ks are the cut-offs of the ranking, each 1 or more, not {ks}.")

    cut = None if whole else min(max(ks), len(gallery))
    relevant = count_labels(gallery_labels, query_labels)
    blocks, start = [], 0
    for index in ranked_blocks(query, gallery, similarity, cut):
        rows = slice(start, start + len(index))
        hit = gallery_labels[index] == query_labels[rows, None]
        blocks.append(_block_metrics(hit, relevant[rows], len(gallery), ks, ap_norm, all_rules))
        start += len(index)
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


class Interval(NamedTuple):
    """The mean of something measured, an interval around it, and how often another sample would turn its sign."""

    mean: float
    low: float
    high: float
    p: float


def class_bootstrap(
    values: torch.Tensor, labels: torch.Tensor, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The mean of `values` [Q] with a bootstrap interval that draws whole classes, with repetition.

    labels: [Q], the class of every query. Queries of a class succeed and fail together, so classes are what one draws:
    C of the C classes, each with all its queries, `draws` times; the mean of each draw is over its queries. The
    interval holds the middle `level` of these means. p is twice the share of the means that lie beyond zero, at least
    1 / draws. For two methods give their differences on the same queries: the interval is then a paired one.
    Raises UserError for values that are not finite or not one for each label, for a single class, and for a level or a
    number of draws that make no interval.
    """
    values = torch.as_tensor(values).detach().double().cpu()
    labels = torch.as_tensor(labels).cpu()
    if values.ndim != 1 or values.shape != labels.shape or not values.isfinite().all():
        raise UserError(
            f"The bootstrap takes finite values [Q] with a label each, not {list(values.shape)} and {list(labels.shape)}."
        )
    if not 0 < level < 1 or draws < 1:
        raise UserError(f"The level lies between 0 and 1 and there is at least one draw, not {level} and {draws}.")
    counts = labels.unique(return_counts=True)[1]  # [C]
    if len(counts) < 2:
        raise UserError("All queries are of one class: there is nothing to draw.")
    codes = labels.unique(return_inverse=True)[1]
    sums = torch.zeros(len(counts), dtype=torch.double).index_add(0, codes, values)  # [C]
    drawn = torch.randint(len(counts), (draws, len(counts)), generator=torch.Generator().manual_seed(seed))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)  # [draws]
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)).tolist()
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return Interval(float(values.mean()), low, high, min(1.0, max(1, 2 * int(beyond)) / draws))


def count_labels(labels: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How often each of `wanted` [Q] is among `labels` [G], [Q]."""
    known, counts = labels.unique(return_counts=True)
    place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return counts[place] * (known[place] == wanted)


def neighbour_purity(features: torch.Tensor, labels: torch.Tensor, k: int = 10):
    """Share of a feature's k nearest neighbours by cosine, itself excluded, that have its label.

    features [n, D], labels [n] -> the mean over the features, 0 to 1. All count where others are fewer.
    Raises UserError as `query_metrics`, for a single feature, which has no neighbour, and for a k below 1.
    """
    check_k(k)
    features, _ = check_features(features, features)
    labels = check_labels("given", labels, features)
    if len(features) < 2:
        raise UserError("A single feature has no neighbour; give two or more.")
    _, index = rank(features, features, k=k + 1)  # [n, k+1], itself among them
    other = index != torch.arange(len(features), device=index.device)[:, None]
    neighbour = other & (other.cumsum(1) <= k)  # a feature with k equals may not be among its first k+1
    return float((labels[index] == labels[:, None])[neighbour].float().mean())


def _block_metrics(
    hit: torch.Tensor, relevant: torch.Tensor, gallery: int, ks: Sequence[int], ap_norm: str, all_rules: bool = False
):
    """hit [B, k], True where the image at that rank is relevant, and how many of all are, [B] -> metrics, each [B]."""
    size = hit.shape[1]
    hits_so_far = hit.cumsum(1, dtype=torch.float32)  # [B, k]
    precision = hits_so_far / torch.arange(1, size + 1, device=hit.device)  # [B, k], Prec@r
    precision_at_hits = precision * hit

    def average_precision(k, norm):
        possible = {"hits": hits_so_far[:, k - 1], "relevant": relevant.clamp(max=k), "all": relevant}[norm]
        return precision_at_hits[:, :k].sum(1) / possible.clamp(min=1)

    largest, *others = sorted(ks, reverse=True)
    cut = min(largest, size)
    metrics = {f"AP@{largest}": average_precision(cut, ap_norm), f"Prec@{largest}": precision[:, cut - 1]}
    if size == gallery:
        metrics["AP@all"] = average_precision(size, ap_norm)
    metrics |= {f"Prec@{k}": precision[:, min(k, size) - 1] for k in others}
    rules = AP_RULES if all_rules else {}
    return metrics | {f"AP@{largest} by {rule}": average_precision(cut, norm) for rule, norm in rules.items()}


def check_labels(name: str, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Labels [n] on the features' device. Raises UserError where they are no numbers, or not one for each."""
    try:
        labels = torch.as_tensor(labels, device=features.device)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"{name} labels are whole numbers, one for each class, such as data.class_index[rows], and not text: "
            "number the classes, for example with sorted(set(names)).index(name)."
        ) from None
    if labels.shape != features.shape[:1]:
        raise UserError(
            f"{len(features)} {name} features need one label each, not labels of shape {list(labels.shape)}."
        )
    return labels
