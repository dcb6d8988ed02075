"""Approximate indexes under a domain gap: how much of the exact ranking IVF, HNSW and PQ find, for near and far queries.

    pip install "prosutils[large]"                     # faiss
    python studies/approximate_indexes.py              # ten minutes on two cores; figures/approximate_indexes.csv

The gallery holds PictoNet's near tier in four domains: emoji, clipart, outline and pixel, each drawing as it is and in an
augmented view (crop, flip, colour), so that it is large enough for an index: views of a drawing lie closer together
than pictures of a real gallery do. Every tenth drawing is left out of it, and its plain view is a query of the gallery's
own domains. The other queries are the drawings of two domains that the gallery lacks, near and far: sketches, and the
same ones in chalk; silhouettes, and the same ones as worn stamps. ProS was trained with chalk held out, and on stamps.

recall@k is the share of the k most similar pictures, by exact ranking, among the k answers of the index. `compared` is
the share of the gallery whose features an index compared with a query. An IVF is trained with three seeds, of which the
table has the mean. Of each kind at most MOST queries are taken, spread evenly. All features have length 1.
"""

import argparse
from pathlib import Path

import faiss
import pandas as pd
import torch
from dial import shipped_models
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm

from prosutils import ImageDomains, embed, load_clip, load_preset, rank
from prosutils.domains import eval_transform, train_transform
from prosutils.experiment import lay_out_pictonet
from prosutils.tables import write_table

TABLE = Path(__file__).parents[1] / "figures" / "approximate_indexes.csv"
GALLERY = ("emoji", "clipart", "outline", "pixel")
#: Queries: tier and domain.
QUERIES = {
    "sketch (near)": ("near", "sketch"),
    "chalk (far)": ("far", "chalk"),
    "solid (near)": ("near", "solid"),
    "stamp (far)": ("far", "stamp"),
}
LEFT_OUT = 10  # every tenth drawing of the gallery's domains
MOST = 300  # queries of a kind
KS = (10, 200)
LISTS, PROBES = 128, (1, 2, 4, 8, 16, 32)
LINKS, EFFORTS = 32, (200, 400, 800)
BYTES = (8, 16, 32, 64)
SEEDS = (0, 1, 2)


def pictures(views: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Normalised images [n, 3, H, W]: of the gallery, and of the queries by name."""
    clip = load_clip()
    data = {
        tier: ImageDomains.from_folder(lay_out_pictonet(load_preset(preset)))
        for tier, preset in (("near", "mini-near"), ("far", "mini"))
    }
    plain = eval_transform(clip.image_size, clip.mean, clip.std)
    changed = train_transform(clip.image_size, clip.mean, clip.std)

    def images(tier: str, rows: torch.Tensor, transform) -> torch.Tensor:
        return torch.stack([transform(data[tier].load(row)) for row in rows.tolist()])

    own = data["near"].rows(GALLERY, data["near"].classes)
    left_out = torch.arange(len(own)) % LEFT_OUT == 0
    kept = own[~left_out]
    gallery = [images("near", kept, plain), *(images("near", kept, changed) for _ in range(views - 1))]
    queries = {"the gallery's domains": images("near", spread(own[left_out]), plain)}
    for name, (tier, domain) in QUERIES.items():
        queries[name] = images(tier, spread(data[tier].rows([domain], data[tier].classes)), plain)
    return torch.cat(gallery), queries


def spread(rows: torch.Tensor) -> torch.Tensor:
    """MOST of the rows [n] at most, at equal distances."""
    return rows[torch.linspace(0, len(rows) - 1, min(MOST, len(rows))).long()]


def features(model, images: torch.Tensor) -> torch.Tensor:
    """Features [n, D] of length 1."""
    return F.normalize(embed(model, TensorDataset(images)), dim=1)


def recall(found: torch.Tensor, exact: torch.Tensor, k: int) -> float:
    """The share of the first k of `exact` [Q, K] among the first k of `found` [Q, K]; -1 stands for no answer."""
    row = torch.arange(len(exact))[:, None] * 2**32  # the same picture for two queries is two answers
    return float(torch.isin(exact[:, :k] + row, found[:, :k] + row).float().mean())


def indexes(gallery):
    """Yields (kind, setting, index, statistics or None) of every index at every setting, for features [G, D]."""
    width = gallery.shape[1]
    for seed in SEEDS:
        ivf = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, LISTS)
        ivf.cp.seed = seed
        ivf.train(gallery)
        ivf.add(gallery)
        for probes in PROBES:
            ivf.nprobe = probes
            yield "IVF", f"{probes} of {LISTS} lists", ivf, faiss.cvar.indexIVF_stats
    hnsw = faiss.IndexHNSWFlat(width, LINKS)
    hnsw.hnsw.efConstruction = 200
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # the links depend on the order in which threads add pictures
    hnsw.add(gallery)
    faiss.omp_set_num_threads(threads)
    for effort in EFFORTS:
        hnsw.hnsw.efSearch = effort
        yield "HNSW", f"efSearch {effort}", hnsw, faiss.cvar.hnsw_stats
    for size in BYTES:
        product = faiss.IndexPQ(width, size, 8)
        product.train(gallery)
        product.add(gallery)
        yield "PQ", f"{size} bytes", product, None


def measure(gallery: torch.Tensor, queries: dict[str, torch.Tensor]) -> pd.DataFrame:
    """One row per index, setting and kind of queries; features [G, D] and [Q, D] of length 1."""
    exact = {name: rank(query, gallery, k=max(KS)) for name, query in queries.items()}
    rows = []
    for kind, setting, index, statistics in indexes(gallery.numpy()):
        for name, query in queries.items():
            scores, best = exact[name]
            if statistics:
                statistics.reset()
            found = torch.from_numpy(index.search(query.numpy(), max(KS))[1])
            rows.append(
                {
                    "index": kind,
                    "setting": setting,
                    "query": name,
                    "queries": len(query),
                    "gallery_size": len(gallery),
                    "nearest cosine": float(scores[:, 0].mean()),
                    "compared": statistics.ndis / len(query) / len(gallery) if statistics else 1.0,
                }
                | {f"recall@{k}": recall(found, best, k) for k in KS}
            )
    table = pd.DataFrame(rows)
    table = table.groupby(["index", "setting", "query"], sort=False).mean().reset_index()
    return table.astype({"queries": int, "gallery_size": int})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=2, help="of each drawing in the gallery, the plain one among them")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    args = parser.parse_args()
    torch.manual_seed(0)
    models = shipped_models(args.artifacts)[1]
    gallery, queries = pictures(args.views)
    table = pd.DataFrame()
    for name in tqdm(("Zero-shot CLIP", "ProS"), unit=" models"):
        found = {query: features(models[name], images) for query, images in queries.items()}
        measured = measure(features(models[name], gallery), found).assign(method=name)
        table = pd.concat([table, measured])
        write_table(table.round(4), args.table)
    shown = table.pivot_table(index=["index", "setting"], columns=["query", "method"], values="recall@200", sort=False)
    print(shown.round(2).to_string())


if __name__ == "__main__":
    main()
