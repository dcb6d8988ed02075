"""One ranking through the metrics of other libraries: which rule of AP each divides by, and how long it takes.

    pip install "prosutils[metrics]"                       # torchmetrics, pytorch-metric-learning, ranx
    python studies/metric_libraries.py                     # prints the values side by side, and the seconds of each
    python studies/metric_libraries.py --queries 2000 --gallery 20000

mAP@k of a query is the sum of the precisions at its hits within k, divided by the hits ("hits"), by all that could be
hit ("min(k, R)") or by all relevant images of the gallery ("R"). A library that is not installed is left out, by name.
OML (open-metric-learning 4.0) needs an older numpy than this project runs with: install it apart, and put its folder
on PYTHONPATH.
"""

import argparse
import importlib.util
import time

import pandas as pd
import torch

from prosutils import query_metrics, rank
from prosutils.metrics import AP_RULES


def ours(query, query_labels, gallery, gallery_labels, k):
    """mAP@k of this project by its three rules, {rule: value}."""
    found = query_metrics(query, query_labels, gallery, gallery_labels, ks=(k,), all_rules=True, whole=False)
    return {rule: float(found[f"AP@{k} by {rule}"].mean()) for rule in AP_RULES}


def cosines(query, gallery):
    """[Q, G]"""
    return torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(gallery, dim=1).T


def torchmetrics_map(query, query_labels, gallery, gallery_labels, k):
    """Since version 1.7.4 a hit with a score of 0 or below does not count, so the scores are shifted above 0."""
    from torchmetrics.functional.retrieval import retrieval_average_precision

    relevant = query_labels[:, None] == gallery_labels
    pairs = zip(cosines(query, gallery) + 2, relevant)
    return torch.stack([retrieval_average_precision(scores, hits, top_k=k) for scores, hits in pairs]).mean().item()


def torchmetrics_on_distances(query, query_labels, gallery, gallery_labels, k):
    """The trap: negative distances as scores, a ranking that is exactly the same."""
    from torchmetrics.functional.retrieval import retrieval_average_precision

    relevant = query_labels[:, None] == gallery_labels
    pairs = zip(cosines(query, gallery) - 1, relevant)  # half of minus the squared distance
    return torch.stack([retrieval_average_precision(scores, hits, top_k=k) for scores, hits in pairs]).mean().item()


def pytorch_metric_learning_map(query, query_labels, gallery, gallery_labels, k):
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=("mean_average_precision",), k=k, device=torch.device("cpu"))
    query, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (query, gallery))  # it ranks by distance
    return calculator.get_accuracy(query, query_labels, gallery, gallery_labels)["mean_average_precision"]


def ranx_map(query, query_labels, gallery, gallery_labels, k):
    from ranx import Qrels, Run, evaluate

    scores, index = rank(query, gallery, k=k)
    names = [str(i) for i in range(len(gallery))]
    relevant = {
        str(i): {names[j]: 1 for j in (gallery_labels == label).nonzero().flatten().tolist()}
        for i, label in enumerate(query_labels)
    }
    run = {
        str(i): {names[j]: score for j, score in zip(found.tolist(), row.tolist())}
        for i, (row, found) in enumerate(zip(scores, index))
    }
    return float(evaluate(Qrels(relevant), Run(run), f"map@{k}"))


def oml_map(query, query_labels, gallery, gallery_labels, k):
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_map

    query, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (query, gallery))  # it ranks by distance
    _, found, relevant = batched_knn_qg(query, gallery, k, query_labels, gallery_labels)
    hits = [gallery_labels[index] == label for index, label in zip(found, query_labels)]
    return float(calc_map(hits, [len(rows) for rows in relevant], top_k=(k,))[0].mean())


def faiss_map(query, query_labels, gallery, gallery_labels, k):
    """FAISS ranks, ten lines count."""
    _, index = rank(query, gallery, k=k, engine="faiss")
    hit = gallery_labels[index] == query_labels[:, None]  # [Q, k]
    total = (hit * hit.cumsum(1) / torch.arange(1, hit.shape[1] + 1)).sum(1)
    relevant = (query_labels[:, None] == gallery_labels).sum(1)
    return float((total / relevant.clamp(min=1, max=k)).mean())


#: call: (module that it needs, the rule it follows, function). The rules are tested in tests/test_metric_libraries.py.
LIBRARIES = {
    "torchmetrics retrieval_average_precision": ("torchmetrics", "hits", torchmetrics_map),
    "OML calc_map": ("oml", "hits", oml_map),
    "pytorch-metric-learning AccuracyCalculator": ("pytorch_metric_learning", "R", pytorch_metric_learning_map),
    "ranx map@k": ("ranx", "R", ranx_map),
    "faiss and a cumulative sum": ("faiss", "min(k, R)", faiss_map),
}


def random_case(queries, gallery, classes=10, width=64, noise=2.0, seed=0):
    """(query [Q, D], labels [Q], gallery [G, D], labels [G]): features around a centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    parts = []
    for number in (queries, gallery):
        labels = torch.randint(classes, (number,), generator=generator)
        parts += [centres[labels] + noise * torch.randn(number, width, generator=generator), labels]
    return parts


def compare(case, k):
    """DataFrame with a row per library that is installed: rule, mAP@k, ours by the same rule, difference, seconds."""
    start, rows = time.perf_counter(), []
    rules = ours(*case, k)
    seconds = time.perf_counter() - start
    for name, (module, rule, function) in LIBRARIES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name} is left out: {module} is not installed.")
            continue
        function(*(part[:20] for part in case[:2]), *case[2:], k)  # what is compiled or loaded at the first call
        start = time.perf_counter()
        value = function(*case, k)
        rows.append([name, rule, value, rules[rule], value - rules[rule], time.perf_counter() - start])
    columns = ["call", "divided by", f"mAP@{k}", "prosutils", "difference", "seconds"]
    own = [[f"prosutils by {rule}", rule, value, value, 0.0, seconds] for rule, value in rules.items()]
    return pd.DataFrame(rows + own, columns=columns)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--gallery", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--k", type=int, default=200)
    args = parser.parse_args()
    case = random_case(args.queries, args.gallery, args.classes)
    print(f"{args.queries} queries, {args.gallery} images, about {args.gallery // args.classes} of each class")
    print(compare(case, args.k).round(6).to_string(index=False))
    if importlib.util.find_spec("torchmetrics"):
        value = torchmetrics_on_distances(*case, args.k)
        print(f"torchmetrics with negative distances as scores, the same ranking: {value:.6f}")


if __name__ == "__main__":
    main()
