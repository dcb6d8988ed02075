"""A training step of ProS in this package beside the same step as the released code computes it: seconds and memory.

    python studies/released_way.py                     # some minutes on two cores; figures/released_way.csv

The released code reads all 77 positions of every caption, computes every position of each tower's last block, and keeps
two tensors for each activation function. Both ways are measured on one model with the same weights and pictures, one
after the other in turns; the least seconds of each count. Their losses agree. ViT-B/32 with random weights, by default
a fifth of the paper's batch and of its classes on a CPU, all of them on a GPU. Memory is what the forward pass keeps
for the backward pass, in float32.
"""

import argparse
import contextlib
import time
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from open_clip import transformer

from prosutils import ProS, backbone, load_clip, load_preset, simulator
from prosutils.cost import random_batch, saved_bytes
from prosutils.tables import write_table

TABLE = Path(__file__).parents[1] / "figures" / "released_way.csv"
DOMAINS = ["clipart", "infograph", "painting", "quickdraw", "real"]


def all_positions(blocks, tokens, rows, attn_mask=None):
    """`backbone.run_blocks` with every block at every position [B, T, W]; rows [R], or [B] with a mask -> [B, R, W]."""
    for block in blocks:
        tokens = block(tokens, attn_mask=attn_mask)
    if attn_mask is not None:
        return tokens[torch.arange(len(tokens)), rows][:, None]
    return tokens[:, rows]


def whole_captions(clip, embeddings, end):
    """`PromptableCLIP.read_embeddings` with every caption at its full length: [C, 77, Wt] -> [C, Wt]."""
    model = clip.model
    tokens = embeddings + model.positional_embedding
    return model.ln_final(all_positions(model.transformer.resblocks, tokens, end, model.attn_mask)[:, 0])


@contextlib.contextmanager
def released_way():
    """While steps are computed as in the released code; the numbers are the same."""
    with (
        mock.patch.object(backbone, "run_blocks", all_positions),
        mock.patch.object(simulator, "run_blocks", all_positions),
        mock.patch.object(backbone.PromptableCLIP, "read_embeddings", whole_captions),
        mock.patch.object(backbone.QuickGELU, "forward", transformer.QuickGELU.forward),
    ):
        yield


WAYS = {"this package": contextlib.nullcontext, "released code": released_way}


def compare(model: ProS, images: int, repeats: int) -> pd.DataFrame:
    """One row per stage and way: seconds of a step, GB kept for the backward pass, loss."""
    device = next(model.parameters()).device
    batch, rows = random_batch(model, images, device), {}
    for stage in model.stages:
        optimiser = torch.optim.SGD([p for group in model.set_stage(stage).values() for p in group], lr=0.0)
        for turn in range(repeats + 1):
            for way, computed in WAYS.items():
                with computed():
                    if not turn:
                        kept = saved_bytes(model, lambda stage=stage: model.loss(*batch, stage)) / 1e9
                        rows[stage, way] = dict(seconds=float("inf"), kept_gb=kept)
                        continue
                    begin = time.perf_counter()
                    loss = model.loss(*batch, stage)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    rows[stage, way]["loss"] = float(loss.detach())  # waits for a GPU, too
                    rows[stage, way]["seconds"] = min(rows[stage, way]["seconds"], time.perf_counter() - begin)
    table = pd.DataFrame(rows).T.rename_axis(["stage", "way"]).reset_index()
    return table.assign(images=images, classes=len(model.classes), device=device.type)


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """What the released code takes of each, as a multiple of this package's, by stage."""
    ours, theirs = (table[table.way == way].set_index("stage")[["seconds", "kept_gb"]] for way in WAYS)
    return theirs.astype(float) / ours.astype(float)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    part = 1 if torch.cuda.is_available() else 5
    parser.add_argument("--images", type=int, default=50 // part)
    parser.add_argument("--classes", type=int, default=300 // part)
    parser.add_argument("--repeats", type=int, default=3, help="steps of each way that are timed")
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    torch.manual_seed(0)
    config, device = load_preset("domainnet", stage1_dropout=0.0), "cuda" if torch.cuda.is_available() else "cpu"
    model = ProS(load_clip(config.backbone), [f"class {i}" for i in range(args.classes)], DOMAINS, config).to(device)
    table = compare(model, args.images, args.repeats)
    write_table(table.round({"seconds": 2, "kept_gb": 2, "loss": 4}), args.table)
    print(table.round(3).to_string(index=False))
    print(ratios(table).round(2).to_string())


if __name__ == "__main__":
    main()
