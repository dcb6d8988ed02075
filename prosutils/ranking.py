"""The nearest gallery images of every query, in galleries of any size.

Shapes: Q queries, G gallery images, D feature width, k answers.
"""

import importlib
import numbers
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from .files import UserError

#: Scores that are held at a time: with CHUNK it bounds the memory to some hundred MB for any Q and G.
BLOCK_SCORES = 4_000_000
#: Gallery images that are compared at a time.
CHUNK = 32_768
ENGINES = ("torch", "faiss")


def rank(
    query: torch.Tensor,
    gallery: torch.Tensor,
    similarity: str = "cosine",
    k: int | None = None,
    engine: str = "torch",
    progress: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best gallery images of every query, best first; equal scores in gallery order.

    query [Q, D], gallery [G, D] -> scores [Q, k], index [Q, k] into the gallery; k=None, or above G: all of
    it. Scores are cosines, or negative squared distances (similarity="euclidean"). The ranking is exact. Beside the
    answers and the features it takes some hundred MB; features may be a memory-mapped file (`files.mapped_arrays`), which
    is read a part at a time.
    engine: "torch", or "faiss" where that package is installed (equal scores in any order).
    Raises UserError for shapes that do not fit, features that are not finite, a k below 1, and unknown options.
    """
    check_k(k)
    query, gallery = check_features(query, gallery)
    k = len(gallery) if k is None else min(int(k), len(gallery))
    if engine not in ENGINES:
        raise UserError(f"engine is 'torch' or 'faiss', not {engine!r}.")
    if engine == "faiss":
        return rank_by_faiss(query, gallery, similarity, k)
    query, prepared = comparable(query, gallery, similarity)
    scores = query.new_full((len(query), k), -torch.inf)
    index = torch.full((len(query), k), -1, device=query.device)
    starts = range(0, len(gallery), CHUNK)
    for start in tqdm(starts, desc="Ranking", disable=not progress or len(starts) == 1):
        chunk, lengths = prepared(gallery[start : start + CHUNK])
        for some in torch.arange(len(query)).split(max(1, BLOCK_SCORES // len(chunk))):
            block = slice(int(some[0]), int(some[-1]) + 1)
            new, found = best_of(similarities(query[block], chunk, similarity, lengths), k)
            if start:  # those found before come from the front of the gallery: at equal scores they stay in front
                new, found = torch.cat([scores[block], new], 1), torch.cat([index[block], found + start], 1)
                new, order = new.sort(dim=1, descending=True, stable=True)
                new, found = new[:, :k], found.gather(1, order)[:, :k]
            scores[block, : new.shape[1]], index[block, : new.shape[1]] = new, found
    return scores, index


def ranked_blocks(
    query: torch.Tensor, gallery: torch.Tensor, similarity: str, k: int | None = None
) -> Iterator[torch.Tensor]:
    """Yields index [B, G] into the gallery, or [B, k], best first, for B queries at a time; features are checked."""
    if k is not None:
        yield from rank(query, gallery, similarity, k)[1].split(max(1, BLOCK_SCORES // k))
        return
    query, prepared = comparable(query, gallery, similarity)
    gallery, lengths = prepared(gallery)
    for block in query.split(max(1, BLOCK_SCORES // len(gallery))):
        yield similarities(block, gallery, similarity, lengths).sort(dim=1, descending=True, stable=True).indices


def comparable(query: torch.Tensor, gallery: torch.Tensor, similarity: str):
    """The queries as `similarities` takes them, and a function that prepares any part [n, D] of the gallery: the part, and
    the lengths [n] that its scores are still to be divided by, or None.
    """
    if similarity == "cosine":
        few = len(query) < query.shape[1]  # there are fewer scores than numbers in the features: divide the scores
        return F.normalize(query, dim=1), lambda part: (part, lengths_of(part)) if few else (F.normalize(part), None)
    if similarity == "euclidean":
        # Distances do not change, and what all features have in common no longer drowns what they differ in.
        centre = gallery.mean(0)
        return query - centre, lambda part: (part - centre, None)
    raise UserError(f"similarity is 'cosine' or 'euclidean', not {similarity!r}.")


def lengths_of(features: torch.Tensor) -> torch.Tensor:
    """Lengths [n] of features [n, D], above 0 so that one may divide by them, as F.normalize has it."""
    return torch.linalg.vector_norm(features, dim=1).clamp_min(1e-12)


def similarities(
    query: torch.Tensor, gallery: torch.Tensor, similarity: str, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Scores [B, G] of features that `comparable` gave: products, or -|q - g|^2 = 2 q.g - |g|^2 - |q|^2."""
    scores = query @ gallery.T
    if lengths is not None:
        scores /= lengths
    if similarity == "euclidean":
        scores = 2 * scores - gallery.square().sum(1) - query.square().sum(1, keepdim=True)
    return scores


def best_of(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of each row (all, where it has fewer), best first, equal ones in their order.

    scores [B, G] -> scores [B, k], index [B, k]. torch.topk is many times faster than a sort, but takes any of those
    that are equal: what it took is put in order, and rows where equal ones are left out are sorted.
    """
    if 2 * k >= scores.shape[1]:
        values, index = scores.sort(dim=1, descending=True, stable=True)
        return values[:, :k], index[:, :k]
    lowest = scores.topk(k, sorted=False)
    index = lowest.indices.sort(dim=1).values
    values, order = scores.gather(1, index).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    cut = (scores >= values[:, -1:]).sum(1) > k
    if cut.any():
        again = scores[cut].sort(dim=1, descending=True, stable=True)
        values[cut], index[cut] = again.values[:, :k], again.indices[:, :k]
    return values, index


def rank_by_faiss(query: torch.Tensor, gallery: torch.Tensor, similarity: str, k: int):
    """`rank` by faiss.knn. Raises UserError where the package is not installed."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        raise UserError("engine='faiss' needs the package faiss-cpu: pip install 'prosutils[large]'.") from None
    query, prepared = comparable(query, gallery, similarity)
    gallery, lengths = prepared(gallery)
    gallery = gallery if lengths is None else gallery / lengths[:, None]
    metric = faiss.METRIC_INNER_PRODUCT if similarity == "cosine" else faiss.METRIC_L2
    scores, index = faiss.knn(query.cpu().numpy(), gallery.cpu().numpy(), k, metric=metric)
    scores, index = torch.from_numpy(scores), torch.from_numpy(index)
    return (scores if similarity == "cosine" else -scores).to(query.device), index.to(query.device)


def check_k(k: int | None) -> None:
    """UserError where k is no number of answers: a whole number, 1 or more; None means all."""
    if k is not None and (not isinstance(k, numbers.Integral) or isinstance(k, bool) or k < 1):
        raise UserError(f"k is {k!r}; it is a number of answers, a whole number, 1 or more.")


def check_features(query: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [Q, D] and gallery [G, D] as finite float tensors on one device. Raises UserError for anything else."""
    query, gallery = as_features("query", query), as_features("gallery", gallery)
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"Query features have width {query.shape[1]}, gallery features {gallery.shape[1]}: "
            "embed both with the same model."
        )
    return query, gallery.to(query.device)


def as_features(name: str, features: torch.Tensor) -> torch.Tensor:
    """Features as a float tensor [n, D], checked."""
    try:
        features = torch.as_tensor(features).detach().float()
    except (TypeError, ValueError, RuntimeError):  # text, lists of unequal length
        raise UserError(
            f"{name} features are numbers [number, width], not {type(features).__name__} of others."
        ) from None
    if features.ndim != 2 or not len(features):
        raise UserError(f"{name} features are [number, width] with at least one row, not {list(features.shape)}.")
    # A sum is a finite number only if all its terms are; where it is none, they may also be too large to be added.
    bad = torch.cat([~some.sum(1).isfinite() for some in features.split(CHUNK)])
    if bad.any():
        bad[bad.clone()] = ~features[bad].isfinite().all(1)
    if bad.any():
        raise UserError(
            f"{int(bad.sum())} of {len(features)} {name} features are not finite numbers, "
            f"the first at row {int(bad.nonzero()[0])}: the model that made them is broken."
        )
    return features
