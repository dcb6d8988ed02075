"""Checkpoints of the authors' released code (github fangkaipeng/ProS), in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .backbone import load_clip
from .config import Switches, load_preset
from .files import UserError
from .prompts import captions
from .pros import ProS
from .tuned import TunedCLIP

#: Beginning of a name here -> beginning of the released code's name; the first that fits counts.
NAMES = {
    "units.domain": "specific_domain_prompts",
    "units.semantic": "specific_class_prompts",
    "context.vectors": "text_prompt_learner.ctx",
    "context.embeddings": "text_prompt_learner.origin_text_embedding",
    "simulator.project": "generator_proj",
    "simulator.domain_template": "ge_dom_prompt_template",
    "simulator.semantic_template": "ge_cls_prompt_template",
    "simulator.body.": "generator.",
    "clip.model.visual.class_embedding": "feature_template",
    "clip.model.visual.proj": "feature_proj",
    "clip.model.visual.positional_embedding": "clip_positional_embedding",
    "clip.model.visual.": "",
    "clip.model.": "text_encoder.",
}
#: The released model does without these: it keeps the embedded captions, and its temperature is fixed.
NOT_STORED = ("clip.model.token_embedding.weight", "clip.model.logit_scale")
BACKBONE = "ViT-B-32-quickgelu"


def load_released_checkpoint(path: str | Path, classes: Sequence[str], domains: Sequence[str]) -> ProS:
    """ProS with the weights of a checkpoint as the released trainer writes it, ready for `embed`.

    path: a file with `model_state_dict`; classes: names of the seen classes, domains: names of the training domains,
    both in the order of the training (the released code sorts neither). Read-out, similarity and the other switches
    are set to "released"; stage 1's dropout alone acts in training only, so that `encode_with_units` can be repeated.
    The released model keeps embedded captions but no vocabulary: `clip.encode_text` of other texts means nothing.

    Only tensors and plain values are read, never code. Raises UserError for a file that is not such a checkpoint, and
    for one that does not fit the classes and domains, naming what differs.
    """
    stored = read_released(path)
    length = stored["text_prompt_learner.ctx"].shape[0] if "text_prompt_learner.ctx" in stored else 16
    switches = replace(Switches.released(), dropout="paper")
    config = load_preset("domainnet", pretrained=None, context_tokens=length, switches=vars(switches))
    model = ProS(load_clip(BACKBONE), classes, domains, config)
    own = dict(model.named_parameters()) | {"context.embeddings": model.context.embeddings}
    wanted = {name: tensor for key, tensor in own.items() if (name := released_name(key))}
    refuse_unfitting(stored, wanted, path)
    refuse_other_captions(stored[NAMES["context.embeddings"]], model, path)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])
    return model.requires_grad_(False).eval()


def read_released(path: str | Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a released checkpoint's model."""
    number = np.float64(0).__reduce__()[0]  # how numpy builds a number: the trainer's best mAP
    plain = [number, np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8"))]
    try:
        with torch.serialization.safe_globals(plain):
            return dict(torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"])
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    except Exception:  # torch raises many kinds for a broken or unsafe file; what it advises is to run the code in it
        raise UserError(
            f"{path} is not a checkpoint of the released code (a file with `model_state_dict`), is damaged, or holds "
            "more than tensors and numbers (code in it is never run)."
        ) from None


def released_name(name: str) -> str | None:
    """What the released code calls a parameter or buffer of `ProS`; None where it has no such thing."""
    if name in NOT_STORED:
        return None
    return next((theirs + name[len(ours) :] for ours, theirs in NAMES.items() if name.startswith(ours)), None)


def refuse_unfitting(stored: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], path: str | Path) -> None:
    """UserError naming missing and surplus tensors and those of another shape."""
    shapes = [
        f"{name} is {list(stored[name].shape)} there, {list(wanted[name].shape)} here"
        for name in wanted
        if name in stored and stored[name].shape != wanted[name].shape
    ]
    parts = {
        "of another shape": shapes,
        "missing": sorted(set(wanted) - set(stored)),
        "surplus": sorted(set(stored) - set(wanted)),
    }
    told = [
        f"{kind}: {'; '.join(names[:5])}{' and more' if len(names) > 5 else ''}"
        for kind, names in parts.items()
        if names
    ]
    if told:
        raise UserError(
            f"{path} does not fit {BACKBONE} with these classes and domains. {'. '.join(told)}. "
            "specific_class_prompts has a row per seen class, specific_domain_prompts one per domain."
        )


def refuse_other_captions(embeddings: torch.Tensor, model: TunedCLIP, path: str | Path) -> None:
    """UserError where the stored captions [C, 77, 512] cannot be those of the given classes in the given order.

    A word has one embedding: wherever it stands in the captions, the stored vectors must be equal.
    """
    tokens = model.clip.tokenizer(captions(model.classes, model.config.context_tokens))  # [C, 77]
    words, place = tokens.unique(return_inverse=True)
    first = torch.full((len(words),), tokens.numel()).scatter_reduce(
        0, place.flatten(), torch.arange(tokens.numel()), "amin"
    )  # where a word stands first
    flat = embeddings.reshape(tokens.numel(), -1)
    differs = (flat != flat[first[place.flatten()]]).any(1).reshape(tokens.shape).any(1)  # [C]
    if differs.any():
        names = ", ".join(name for name, wrong in zip(model.classes, differs.tolist(), strict=True) if wrong)
        raise UserError(
            f"{path} was trained with other class names or in another order: its captions do not fit "
            f"{names}. Give the classes as the training had them."
        )
