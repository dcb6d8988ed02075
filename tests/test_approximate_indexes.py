"""The study of approximate indexes: what it calls recall, and what is exact in the limit."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

study = pytest.importorskip("approximate_indexes", reason="faiss-cpu is not installed: pip install 'prosutils[large]'")


def test_recall_by_hand():
    """Of 0, 1, 2 the index found two within three answers; of 5, 6, 7 none. 1 is an answer of the first query only."""
    exact, found = torch.tensor([[0, 1, 2], [5, 6, 7]]), torch.tensor([[2, 9, 0], [1, 2, -1]])
    assert study.recall(found, exact, 3) == pytest.approx(2 / 6)
    assert study.recall(found, exact, 1) == 0 and study.recall(exact, exact, 3) == 1


def test_rows_are_spread_over_all(monkeypatch):
    monkeypatch.setattr(study, "MOST", 3)
    assert study.spread(torch.arange(11)).tolist() == [0, 5, 10] and study.spread(torch.tensor([4, 8])).tolist() == [
        4,
        8,
    ]


def test_an_index_that_compares_with_all_is_exact_and_one_with_few_is_not(monkeypatch):
    monkeypatch.setattr(study, "PROBES", (1, study.LISTS))
    monkeypatch.setattr(study, "KS", (10, 50))
    monkeypatch.setattr(study, "BYTES", (8,))
    generator = torch.Generator().manual_seed(0)
    gallery, query = (torch.nn.functional.normalize(torch.randn(n, 64, generator=generator)) for n in (900, 20))
    table = study.measure(gallery, {"random": query, "themselves": gallery[:20]}).set_index(
        ["index", "setting", "query"]
    )
    few, all_lists = f"1 of {study.LISTS} lists", f"{study.LISTS} of {study.LISTS} lists"
    assert table.loc[("IVF", all_lists, "random"), ["recall@10", "recall@50", "compared"]].tolist() == [1, 1, 1]
    assert table.loc[("IVF", few, "random"), "recall@10"] < 0.5 and table.loc[("IVF", few, "random"), "compared"] < 0.1
    assert table.loc[("IVF", few, "themselves"), "nearest cosine"] == pytest.approx(1, abs=1e-5)
    assert table.loc[("HNSW", "efSearch 800", "random"), "recall@10"] > 0.95
    assert 0.1 < table.loc[("PQ", "8 bytes", "random"), "recall@50"] < 0.9
