"""Rankings and what they are worth, from tensors alone.

Shapes: Q queries, G gallery images, D feature width.
"""

import torch
import torch.nn.functional as F

from .files import UserError

#: Scores ranked at a time: bounds the memory to some hundred MB for any number of queries and gallery images.
BLOCK_SCORES = 4_000_000


def rank(query, gallery, similarity="cosine", k=None):
    """The k best gallery images of every query, best first; equal scores in gallery order.

    query [Q, D], gallery [G, D] -> scores [Q, k], index [Q, k] into the gallery; k=None, or above G: all of
    it. Scores are cosines, or negative squared distances (similarity="euclidean").
    Raises UserError for shapes that do not fit and for features that are not finite.
    """
    query, gallery = _check_features(query, gallery)
    best = [
        (scores[:, :k].clone(), index[:, :k].clone())  # a view would keep its whole block in memory
        for scores, index in _ranked_blocks(query, gallery, similarity)
    ]
    scores, index = zip(*best)
    return torch.cat(scores), torch.cat(index)


def retrieval_metrics(query, query_labels, gallery, gallery_labels, ks=(100, 200), similarity="cosine", ap_norm="hits"):
    """`query_metrics`, each averaged over the queries: {"mAP@200", "Prec@200", "mAP@all", "Prec@100"}."""
    per_query = query_metrics(query, query_labels, gallery, gallery_labels, ks, similarity, ap_norm)
    return {name.replace("AP@", "mAP@"): float(values.double().mean()) for name, values in per_query.items()}


def query_metrics(query, query_labels, gallery, gallery_labels, ks=(100, 200), similarity="cosine", ap_norm="hits"):
    """Average precision and precision of every query: {"AP@200", "Prec@200", "AP@all", "Prec@100"}, each [Q].

    query [Q, D] with labels [Q], gallery [G, D] with labels [G]. With h(r) = 1 where the image at rank r has
    the query's label,

        Prec@k = sum_{r<=k} h(r) / k        AP@k = sum_{r<=k} h(r) Prec@r / n

    and n is the number of hits within k (ap_norm="hits", released code: utils/mAP.py) or of all that could be
    hit, min(k, relevant images of the gallery) (ap_norm="relevant"). AP is taken at the largest of `ks` and
    over the whole gallery. A gallery smaller than k is ranked whole, and k is its size. A query without
    relevant image scores 0.

    Raises UserError for shapes that do not fit, features that are not finite, and unknown options.
    """
    query, gallery = _check_features(query, gallery)
    query_labels = _check_labels("query", query_labels, query)
    gallery_labels = _check_labels("gallery", gallery_labels, gallery)
    if ap_norm not in ("hits", "relevant"):
        raise UserError(f"ap_norm is 'hits' or 'relevant', not {ap_norm!r}.")
    if not ks or min(ks) < 1:
        raise UserError(f"ks are the cut-offs of the ranking, each 1 or more, not {ks}.")

    blocks, start = [], 0
    for _, index in _ranked_blocks(query, gallery, similarity):
        labels = query_labels[start : start + len(index)]
        blocks.append(_block_metrics(gallery_labels[index] == labels[:, None], ks, ap_norm))
        start += len(index)
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def neighbour_purity(features, labels, k=10):
    """Share of a feature's k nearest neighbours by cosine, itself excluded, that have its label.

    features [n, D], labels [n] -> the mean over the features, 0 to 1. All count where others are fewer.
    Raises UserError as `query_metrics`, and for a single feature, which has no neighbour.
    """
    features, _ = _check_features(features, features)
    labels = _check_labels("given", labels, features)
    if len(features) < 2:
        raise UserError("A single feature has no neighbour; give two or more.")
    _, index = rank(features, features, k=k + 1)  # [n, k+1], itself among them
    other = index != torch.arange(len(features), device=index.device)[:, None]
    neighbour = other & (other.cumsum(1) <= k)  # a feature with k equals may not be among its first k+1
    return float((labels[index] == labels[:, None])[neighbour].float().mean())


def _block_metrics(hit, ks, ap_norm):
    """hit [B, G], True where the gallery image at that rank is relevant -> metrics, each [B]."""
    size = hit.shape[1]
    hits_so_far = hit.cumsum(1, dtype=torch.float32)  # [B, G]
    precision = hits_so_far / torch.arange(1, size + 1, device=hit.device)  # [B, G], Prec@r
    precision_at_hits = precision * hit
    relevant = hits_so_far[:, -1]

    def average_precision(k):
        possible = hits_so_far[:, k - 1] if ap_norm == "hits" else relevant.clamp(max=k)
        return precision_at_hits[:, :k].sum(1) / possible.clamp(min=1)

    largest, *others = sorted(ks, reverse=True)
    metrics = {
        f"AP@{largest}": average_precision(min(largest, size)),
        f"Prec@{largest}": precision[:, min(largest, size) - 1],
        "AP@all": average_precision(size),
    }
    return metrics | {f"Prec@{k}": precision[:, min(k, size) - 1] for k in others}


def _ranked_blocks(query, gallery, similarity):
    """Yields (scores [B, G], index [B, G]), best first, for B queries at a time."""
    if similarity == "cosine":
        query, gallery = F.normalize(query, dim=1), F.normalize(gallery, dim=1)
    elif similarity != "euclidean":
        raise UserError(f"similarity is 'cosine' or 'euclidean', not {similarity!r}.")
    for block in query.split(max(1, BLOCK_SCORES // len(gallery))):
        scores = block @ gallery.T
        if similarity == "euclidean":  # -|q - g|^2 = 2 q.g - |g|^2 - |q|^2
            scores = 2 * scores - gallery.square().sum(1) - block.square().sum(1, keepdim=True)
        yield torch.sort(scores, dim=1, descending=True, stable=True)


def _check_features(query, gallery):
    query, gallery = torch.as_tensor(query).detach().float(), torch.as_tensor(gallery).detach().float()
    for name, features in (("query", query), ("gallery", gallery)):
        if features.ndim != 2 or not len(features):
            raise UserError(f"{name} features are [number, width] with at least one row, not {list(features.shape)}.")
        bad = ~features.isfinite().all(1)
        if bad.any():
            raise UserError(
                f"{int(bad.sum())} of {len(features)} {name} features are not finite numbers, "
                f"the first at row {int(bad.nonzero()[0])}: the model that made them is broken."
            )
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"Query features have width {query.shape[1]}, gallery features {gallery.shape[1]}: "
            "embed both with the same model."
        )
    return query, gallery.to(query.device)


def _check_labels(name, labels, features):
    labels = torch.as_tensor(labels, device=features.device)
    if labels.shape != features.shape[:1]:
        raise UserError(
            f"{len(features)} {name} features need one label each, not labels of shape {list(labels.shape)}."
        )
    return labels
