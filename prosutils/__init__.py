"""ProS (CVPR 2024): prompt tuning of CLIP for universal cross-domain retrieval, taught, implemented and measured."""

from . import ablations, baselines, followers  # noqa: F401  (importing them registers their methods)
from .backbone import PromptableCLIP, load_clip
from .baselines import VPT, HeadsOnly, ZeroShot
from .config import Config, Stage, Switches, load_preset
from .domains import ImageDomains, Images
from .evaluation import embed, embed_rows, evaluate, evaluate_all
from .experiment import Experiment, prepare
from .files import UserError
from .metrics import query_metrics, rank, retrieval_metrics
from .pros import ProS
from .released import load_released_checkpoint
from .splits import Split, make_split, protocol_splits
from .training import build_model, load_checkpoint, save_checkpoint, train
from .tuned import METHODS, TunedCLIP, register

__all__ = [
    "METHODS",
    "Config",
    "Experiment",
    "HeadsOnly",
    "ImageDomains",
    "Images",
    "ProS",
    "PromptableCLIP",
    "Split",
    "Stage",
    "Switches",
    "TunedCLIP",
    "UserError",
    "VPT",
    "ZeroShot",
    "build_model",
    "embed",
    "embed_rows",
    "evaluate",
    "evaluate_all",
    "load_checkpoint",
    "load_clip",
    "load_preset",
    "load_released_checkpoint",
    "make_split",
    "prepare",
    "protocol_splits",
    "query_metrics",
    "rank",
    "register",
    "retrieval_metrics",
    "save_checkpoint",
    "train",
]
