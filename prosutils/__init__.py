"""ProS (CVPR 2024): prompt tuning of CLIP for universal cross-domain retrieval, taught, implemented and measured."""
from .backbone import PromptableCLIP, load_clip
from .baselines import VPT, HeadsOnly, ZeroShot
from .config import Config, Stage, Switches, UserError, load_preset
from .domains import ImageDomains
from .evaluation import embed, evaluate, evaluate_all, rank, retrieval_metrics
from .pros import ProS
from .released import load_released_checkpoint
from .splits import Split, make_split, protocol_splits
from .training import build_model, load_checkpoint, save_checkpoint, train

__all__ = ["Config", "HeadsOnly", "ImageDomains", "ProS", "PromptableCLIP", "Split", "Stage", "Switches", "UserError", "VPT",
           "ZeroShot", "build_model", "embed", "evaluate", "evaluate_all", "load_checkpoint", "load_clip", "load_preset",
           "load_released_checkpoint", "make_split", "protocol_splits", "rank", "retrieval_metrics", "save_checkpoint", "train"]
