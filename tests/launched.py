"""What test_processes.py runs in one process and in two, to compare: a resumed training, its features, a loss that
compares images of a batch, and every kind of input of `embed`."""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from prosutils import cli, embed, load_preset, prepare, processes

UNSEEN = ["gem", "stripes"]
SETTINGS = dict(
    seed=3,
    unseen_domain="sketch",
    temperature=0.5,
    stage1=dict(epochs=1, batch_size=9),
    stage2=dict(epochs=2, batch_size=9),
)
#: The same settings as flags. 9 images are no multiple of 2 processes.
FLAGS = (
    "--preset mini-near --device cpu --seed 3 --unseen-domain sketch --unseen-classes gem,stripes --temperature 0.5 "
    "--stage1.epochs 1 --stage1.batch-size 9 --stage2.epochs 2 --stage2.batch-size 9"
).split()


def work(folder, artifacts):
    """Resumes the training in `artifacts`, embeds the pictures in `folder`; returns {name: tensor}."""
    cli.main(["train", "--data", str(folder), "--artifacts", str(artifacts), "--resume", *FLAGS])
    (checkpoint,) = artifacts.glob("runs/*pros*/model.pt")
    cli.main(
        ["embed", "--data", str(folder), "--checkpoint", str(checkpoint), "--device", "cpu"]
        + ["--out", str(artifacts / "features.npz")]
    )
    run = prepare(load_preset("mini-near", **SETTINGS), folder, UNSEEN, artifacts, "cpu", progress=False)
    model, history = run.fit("depro", progress=False)
    images = torch.randn(7, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    return dict(
        loss=torch.tensor(history.loss.tolist()),
        accuracy=torch.tensor(history.accuracy.tolist()),
        tensor=embed(model, images),
        dataset=embed(model, TensorDataset(images), batch_size=2),
        own_loader=embed(model, DataLoader(TensorDataset(images), batch_size=3)),
        fewer_than_processes=embed(model, images[:1]),
        files=embed(model, sorted(Path(folder).rglob("*.png"))[:5]),
    )


if __name__ == "__main__":
    place = Path(sys.argv[2])
    results = work(Path(sys.argv[1]), place)
    if processes.is_main():
        torch.save(results, place / "results.pt")
