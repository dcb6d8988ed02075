"""What does the work in a trained ProS: its prompts replaced, or a part that trained put back to CLIP's own."""

import copy

import torch

from .backbone import PromptableCLIP
from .domains import ImageDomains
from .evaluation import embed_rows, fast_batch, loader, once, rows_as_images
from .files import UserError
from .pros import ProS

#: Whose prompts an image is read with. Of another picture: drawn at random among the others of its domain; of another
#: domain: among the pictures of all others; mean: of the prompts of all pictures that are measured together.
PROMPTS = ("own", "another picture's", "another domain's", "mean", "none")
#: Parts of a trained ProS that can be put back to what they were in CLIP.
RESTORED = {"class token": ("clip.model.visual.class_embedding",), "heads": ("clip.model.visual.proj",)}


@torch.no_grad()
def embed_rows_with_prompts(
    model: ProS, data: ImageDomains, rows: torch.Tensor, prompts: str = "own", seed: int = 0
) -> torch.Tensor:
    """Features [m, D] (float32, on the CPU) of the images in `rows` [m] of `data`, read with other prompts than theirs.

    prompts: one of PROMPTS; seed: of the draw of another picture. "own" is what `embed_rows` gives. Raises UserError
    for an unknown kind, and where there is no other picture or domain to take prompts from.
    """
    if prompts not in PROMPTS:
        raise UserError(f"Unknown prompts {prompts!r}. Known: {', '.join(PROMPTS)}.")
    model.eval()
    if prompts == "own":
        return embed_rows(model, data, rows)
    device = next(model.parameters()).device
    batches = loader(rows_as_images(model, data, rows), model.config.workers, batch_size=fast_batch(device))
    if prompts == "none":
        used = [None] * len(batches)
    else:
        written = torch.cat([model.simulate(batch[0].to(device)) for batch in once(batches)])  # [m, P, W]
        if prompts == "mean":
            written = written.mean(0, keepdim=True).expand_as(written)
        else:
            whose = partners(data.domain_index[rows], prompts == "another picture's", seed)
            written = written[whose.to(device)]
        used = written.split(fast_batch(device))
    features = [
        model.encode_with_prompts(batch[0].to(device), theirs)
        for batch, theirs in zip(once(batches), used, strict=True)
    ]
    return torch.cat(features).float().cpu()


def partners(domain_index: torch.Tensor, same_domain: bool, seed: int) -> torch.Tensor:
    """For each of m images the position [m] of another one, drawn among those of its own domain or of all others.

    domain_index: [m]. Raises UserError where an image has no such partner.
    """
    generator = torch.Generator().manual_seed(seed)
    everyone = torch.arange(len(domain_index))
    found = torch.empty_like(everyone)
    for domain in domain_index.unique():
        here = domain_index == domain
        own = everyone[here]
        if same_domain:  # a shift of a random order never gives an image its own prompts
            order = own[torch.randperm(len(own), generator=generator)]
            found[order] = order.roll(1)
        elif here.all():
            raise UserError("All pictures are of one domain: there is no other to take prompts from.")
        else:
            others = everyone[~here]
            found[own] = others[torch.randint(len(others), (len(own),), generator=generator)]
        if same_domain and len(own) < 2:
            raise UserError("A domain has one picture only: there is no other of it to take prompts from.")
    return found


def restored(model: ProS, clip: PromptableCLIP, part: str) -> ProS:
    """A copy of a trained model with one part (of RESTORED) as it is in `clip`, from which it was trained."""
    if part not in RESTORED:
        raise UserError(f"Unknown part {part!r}. Known: {', '.join(RESTORED)}.")
    changed = copy.deepcopy(model)
    for name in RESTORED[part]:
        changed.get_parameter(name).data.copy_(clip.get_parameter(name.removeprefix("clip.")))
    return changed


def embed_rows_in_part(model: ProS, clip: PromptableCLIP, data: ImageDomains, rows: torch.Tensor, part: str):
    """Features [m, D] of rows [m], read with other prompts (one of PROMPTS) or with a part of RESTORED put back."""
    if part in RESTORED:
        return embed_rows(restored(model, clip, part), data, rows)
    return embed_rows_with_prompts(model, data, rows, part)
