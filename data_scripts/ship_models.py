"""Trains the models that come with the package: ProS in both settings and heads only of the preset `mini`.

    python data_scripts/ship_models.py                 # twenty minutes on one core; takes finished runs

Notebooks load them (`run.fit(method, shipped=True)`), so that each of them stands alone without a training first; what
`make tutorial` or `prosutils train` trains comes before them. Each is a checkpoint with its history.
"""

import argparse
from pathlib import Path

from prosutils import load_preset, prepare, save_checkpoint
from prosutils.experiment import shipped_path

#: File: method, setting of the switch `heads`.
MODELS = {
    "mini-pros-chalk-seed0": ("pros", "paper"),
    "mini-heads-chalk-seed0": ("heads", "paper"),
    "mini-pros-chalk-seed0-heads": ("pros", "released"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="where finished runs lie")
    args = parser.parse_args()
    for name, (method, heads) in MODELS.items():
        # A run's folder has one name for both settings: each setting gets a folder of its own.
        folder = args.artifacts if heads == "paper" else args.artifacts / "heads"
        run = prepare(load_preset("mini", switches=dict(heads=heads)), artifacts=folder)
        model, history = run.fit(method)
        path = shipped_path(name)
        save_checkpoint(model, path, dict(history=history.to_dict("records")))
        print(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, mAP@200 on validation classes "
            f"{history['val_mAP@200'].max():.3f}"
        )


if __name__ == "__main__":
    main()
