"""Zero-shot mini-CLIP on PictoNet's far tier, on validation classes, technique by technique, from weak to strong.

    python studies/far_strength.py                    # three minutes on one core; figures/far_strength.csv

`pictonet.FAR_STRENGTH` is chosen from this table, for room alone, before any method is compared. The queries are the
validation classes' drawings of one domain and the gallery is the same classes' emoji. It is smaller than the gallery
of the tests, so the numbers are higher: compare them with those at strength 0, which is the near tier.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from prosutils import PromptableCLIP, embed, load_clip, pictonet, retrieval_metrics
from prosutils.domains import eval_transform
from prosutils.tables import write_table

STRENGTHS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TABLE = Path(__file__).parents[1] / "figures" / "far_strength.csv"


def features(clip: PromptableCLIP, pictures: list[Image.Image]) -> torch.Tensor:
    """[n, D] of n RGB pictures."""
    prepare = eval_transform(clip.image_size, clip.mean, clip.std)
    return embed(clip, torch.stack([prepare(picture) for picture in pictures]))


def measure(clip: PromptableCLIP, strengths: tuple[float, ...], size: int) -> pd.DataFrame:
    """One row per technique and strength: technique, strength, chosen, queries, gallery, mAP@200."""
    classes = pictonet.classes()["val"]
    records = {
        domain: [record for record in pictonet.manifest() if record["domain"] == domain and record["class"] in classes]
        for domain in pictonet.PICTONET_DOMAINS
    }
    labels = {
        domain: torch.tensor([classes.index(record["class"]) for record in found]) for domain, found in records.items()
    }
    emoji = records[pictonet.GALLERY_DOMAIN]
    gallery = features(clip, [pictonet.load_drawing(record, size) for record in emoji])
    cases = [
        (domain, technique, strength)
        for domain, technique in pictonet.FAR_DOMAINS.items()
        for strength in sorted({*strengths, pictonet.FAR_STRENGTH[technique]})
    ]
    rows = []
    for domain, technique, strength in tqdm(cases, unit=" cases"):
        query = features(clip, [pictonet.load_drawing(record, size, "far", strength) for record in records[domain]])
        metrics = retrieval_metrics(query, labels[domain], gallery, labels[pictonet.GALLERY_DOMAIN], ap_norm="relevant")
        rows.append(
            {
                "technique": technique,
                "strength": strength,
                "chosen": strength == pictonet.FAR_STRENGTH[technique],
                "queries": len(query),
                "gallery": len(gallery),
                "mAP@200": round(metrics["mAP@200"], 4),
            }
        )
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", nargs="+", type=float, default=STRENGTHS, help="0 (near) to 1")
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    table = measure(load_clip("mini"), tuple(args.strengths), size=64)
    write_table(table, args.table)
    print(table.pivot(index="technique", columns="strength", values="mAP@200").round(3).to_string(na_rep=""))
    print(
        "Chosen strengths:",
        f"{table[table.chosen]['mAP@200'].mean():.3f}",
        "on average; near tier:",
        f"{table[table.strength == 0]['mAP@200'].mean():.3f}",
    )


if __name__ == "__main__":
    main()
