"""Trains the models that come with the package: ProS and heads only of the preset `mini`, sketch held out.

    python data_scripts/ship_models.py                 # ten minutes; takes a finished run of the same settings

Notebooks load them (`run.fit(method, shipped=True)`), so that each of them stands alone without a training first; what
`make tutorial` or `python -m prosutils train` trains comes before them. Each is a checkpoint with its history.
"""

import argparse
from pathlib import Path

from prosutils import load_preset, save_checkpoint
from prosutils.experiment import prepare, shipped_path

METHODS = ("pros", "heads")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="where finished runs lie")
    args = parser.parse_args()
    run = prepare(load_preset("mini"), artifacts=args.artifacts)
    for method in METHODS:
        model, history = run.fit(method)
        path = shipped_path(run.folder(method).name)
        save_checkpoint(model, path, dict(history=history.to_dict("records")))
        print(
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, mAP@200 on validation classes "
            f"{history['val_mAP@200'].max():.3f}"
        )


if __name__ == "__main__":
    main()
