"""Pre-train mini-CLIP on the icons of designers who have no drawing in PictoNet.

    python data_scripts/pretrain_miniclip.py                      # the shipped recipe (hours on two cores)
    python data_scripts/pretrain_miniclip.py --samples 400000     # a small one, half an hour

It fetches the pinned icon package (or takes --tarballs), leaves out every set that `pictonet_sources.json` names and
every icon that is a near copy of one of theirs, renders the rest once, trains with CLIP's loss, and writes
`miniclip.safetensors`, its model card and its loss curve. Run it again after an interruption and it goes on.
"""

import argparse
import csv
import io
import json
import math
import os
import re
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from icon_packages import SOURCES, fetch_packages
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from prosutils.backbone import MINI, MINI_MEAN, MINI_STD, MiniTokenizer, PromptableCLIP, build_mini, fold_batch_norm
from prosutils.files import UserError, end_with_parent
from prosutils.training import has_bfloat16

PIXELS = 64  # of a rendered icon; augmentation cuts 56 x 56 out of it
ICONS_PER_NAME = 4  # variants (outline, filled, ...) of one name taken from one set
COPY_DISTANCE = 0.03  # mean difference of two 16 x 16 thumbnails under which an icon counts as a copy
AREAS = 12  # colours at most for the closed areas of one drawing
LOG_EVERY = 50  # steps between two rows of the loss curve
ALLOWED = re.compile(r"MIT|Apache|ISC|BSD|MPL|OFL|CC0|CC-BY-[34]|Unlicense")
EMOJI_SETS = ("noto", "twemoji", "emojione", "fluent-emoji-flat", "fxemoji")  # only their words are read
STYLE_SUFFIX = re.compile(
    r"[-_](outlined?|line|linear|regular|light|thin|fill|filled|bold|bolder|duotone|solid|sharp|rounded?|two-?tone|alt|"
    r"broken|icon|stroke|baseline|small|duo|\d+(px)?|one|two|three|four|circle-fill)$|"
    r"^(baseline|outline|round|sharp|twotone)-"
)
#: Words of emoji names that say how, not what: a name needs another word to count as a thing.
NOT_THINGS = set(
    """and arrow arrows auto back big black blue brown button check circle circled closed cool cross
counterclockwise clockwise dash diagonal dot double down eight end exclamation face facing first five for forward four
free from full green hand heavy high horizontal index input large last left light line link long loop low man mark
medium men middle minus mode new next nine not off one open orange out over page part person play plus purple quarter
question record red right rolling round seven sign single six slash small soon sos square stop symbol ten test the three
top two type vertical wavy white with without woman women yellow""".split()
)


# --- Which icons, under which names -------------------------------------------------------------------------------


def withheld_sets():
    """Every icon set that feeds the benchmark, and the relatives of those sets."""
    families = [*SOURCES["domains"].values(), SOURCES["relatives"]]
    return {name for family in families for sets in family.values() for name in sets}


def base_name(icon):
    """'home-2-outline' -> 'home': the name without what it says of style."""
    while (shorter := STYLE_SUFFIX.sub("", icon)) != icon:
        icon = shorter
    return icon.replace("-", " ").replace("_", " ")


def allowed_sets(folder):
    """{set: author} of the sets that may be trained on: licence allowed, not withheld, no logos or flags."""
    collections = json.loads((folder / "collections.json").read_text(encoding="utf-8"))
    skipped, withheld = {"Logos", "Programming", "Flags / Maps"}, withheld_sets()
    return {
        name: about["author"]["name"]
        for name, about in collections.items()
        if name not in withheld
        and about.get("category") not in skipped
        and ALLOWED.search(about["license"].get("spdx") or "")
        and not re.search("NC|SA|GPL", about["license"]["spdx"])
    }


def read_set(folder, name):
    """One iconify set: its JSON, hidden icons left out."""
    icons = json.loads((folder / "json" / f"{name}.json").read_text(encoding="utf-8"))
    icons["icons"] = {key: icon for key, icon in icons["icons"].items() if not icon.get("hidden")}
    return icons


def things(folder):
    """Words for everyday things: used by three emoji sets or more, and not in NOT_THINGS."""
    words = Counter()
    for name in EMOJI_SETS:
        icons = [icon for icon in read_set(folder, name)["icons"] if not re.search("flag|skin|tone", icon)]
        words.update({word for icon in icons for word in icon.split("-")})
    return {word for word, sets in words.items() if sets >= 3 and len(word) > 2} - NOT_THINGS


def vocabulary(folder):
    """{name: weight} of what icons are called, the names of everyday things above all.

    Kept are names with a thing in them that two designers use, names made of things only, and names that ten
    designers use (ours say "trash" where an emoji says "wastebasket"). Names made of things only weigh three times.
    """
    words, designers = things(folder), defaultdict(set)
    for name, author in allowed_sets(folder).items():
        for icon in read_set(folder, name)["icons"]:
            designers[base_name(icon)].add(author)
    names = {}
    for name, authors in designers.items():
        parts = set(name.split())
        pure = bool(parts) and parts <= words
        if pure or (len(authors) >= 2 and parts & words) or len(authors) >= 10:
            names[name] = 3.0 if pure else 1.0
    return dict(sorted(names.items()))


# --- Rendering ----------------------------------------------------------------------------------------------------


def render(icons, name, pixels=PIXELS):
    """One icon as RGBA uint8 [pixels, pixels, 4], black where the set gives no colour."""
    import resvg_py

    icon = icons["icons"][name]
    box = [
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
        f'viewBox="{" ".join(map(str, box))}" width="{pixels}" height="{pixels}">{icon["body"]}</svg>'
    )
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    return np.asarray(image if image.size == (pixels, pixels) else image.resize((pixels, pixels)))


def thumbnail(rgba):
    """Grey 16 x 16 picture on white, float32 in [0, 1], for the comparison of two drawings."""
    rgba = rgba.astype(np.float32) / 255
    grey = 1 - rgba[..., 3] * (1 - rgba[..., :3].mean(-1))
    return grey.reshape(16, rgba.shape[0] // 16, 16, -1).mean((1, 3))


def render_set(folder, name, wanted):
    """[(base name, icon name, RGBA)] of one set, the wanted names only; icons that do not render are left out."""
    icons, seen, out = read_set(folder, name), Counter(), []
    for icon in sorted(icons["icons"]):
        base = base_name(icon)
        if base not in wanted or seen[base] >= ICONS_PER_NAME:
            continue
        try:
            rgba = render(icons, icon)
        except ValueError:  # resvg refuses a few malformed drawings
            continue
        if rgba[..., 3].mean() >= 2:
            seen[base] += 1
            out.append((base, icon, rgba))
    return out


def render_all(folder, sets, wanted, label):
    """Yields (set, base name, icon name, RGBA) of many sets, on all cores."""
    with ProcessPoolExecutor(initializer=end_with_parent) as pool:
        jobs = [(name, pool.submit(render_set, folder, name, wanted)) for name in sets]
        for name, job in tqdm(jobs, desc=label, unit=" sets"):
            yield from ((name, *row) for row in job.result())


@dataclass
class Icons:
    """What is trained on. Rows 0..len(ink)-1 have ink only and get colours when drawn; the others have their own."""

    ink: torch.Tensor  # uint8 [n, 64, 64], coverage
    areas: torch.Tensor  # uint8 [n, 64, 64], which closed area a pixel lies in (0: outside), for colouring in
    colour: torch.Tensor  # uint8 [m, 4, 64, 64], RGBA
    label: torch.Tensor  # int64 [n + m], row of `names`
    style: list  # [n + m], a word for the caption
    names: list
    importance: torch.Tensor  # float [number of names]
    left_out: int  # near copies of withheld drawings


def style_word(icon, rgba, coloured):
    """How a designer's picture looks, in a word: from its name where that says it, else from its share of ink."""
    if coloured:
        return "colourful"
    for pattern, word in (
        ("duo|two", "two-tone"),
        ("thin|light", "thin line"),
        ("outline|line|stroke|regular", "outline"),
        ("fill|solid|bold", "solid"),
    ):
        if re.search(pattern, icon):
            return word
    share = rgba[..., 3].mean() / 255
    return "solid" if share > 0.3 else "outline" if share < 0.2 else "plain"


def closed_areas(ink):
    """The areas that the lines of a drawing close in, as in a colouring book: [64, 64] coverage -> labels 0..AREAS.

    Areas reach under the ink, so that no gap shows along an anti-aliased line; 0 is outside.
    """
    paper = ink < 96
    labels, _ = ndimage.label(np.pad(paper, 1, constant_values=True))  # the frame joins all that is outside
    labels = labels[1:-1, 1:-1]
    inside = np.where(paper, (labels - 1) % AREAS + 1, 0) * (labels != 1)
    if paper.any():
        nearest = ndimage.distance_transform_edt(~paper, return_distances=False, return_indices=True)
        inside = inside[tuple(nearest)]
    return inside.astype(np.uint8)


def load_icons(folder, cache):
    """Render (or read from `cache`) every icon to train on."""
    if not cache.exists():
        importance = vocabulary(folder)
        names = list(importance)
        withheld = defaultdict(list)
        known = {path.stem for path in (folder / "json").glob("*.json")}
        for _, name, _, rgba in render_all(folder, sorted(withheld_sets() & known), set(names), "withheld drawings"):
            withheld[name].append(thumbnail(rgba))
        ink, colour, rows, left_out = [], [], [], 0
        for _, name, icon, rgba in render_all(
            folder, sorted(allowed_sets(folder)), set(names), "drawings to learn from"
        ):
            if (
                name in withheld
                and np.abs(np.stack(withheld[name]) - thumbnail(rgba)).mean((1, 2)).min() < COPY_DISTANCE
            ):
                left_out += 1
                continue
            coloured = rgba[..., :3][rgba[..., 3] > 128].std() > 8 if (rgba[..., 3] > 128).any() else False
            (colour if coloured else ink).append(rgba.transpose(2, 0, 1) if coloured else rgba[..., 3])
            rows.append((bool(coloured), names.index(name), style_word(icon, rgba, coloured)))
        rows.sort(key=lambda row: row[0])  # stable: ink first, in the order of the arrays
        part = cache.with_suffix(".part.npz")
        areas = [closed_areas(drawing) for drawing in tqdm(ink, desc="areas to colour in")]
        np.savez(
            part,
            ink=np.stack(ink),
            areas=np.stack(areas),
            colour=np.stack(colour),
            label=[row[1] for row in rows],
            style=[row[2] for row in rows],
            names=names,
            importance=list(importance.values()),
            left_out=left_out,
        )
        os.replace(part, cache)
    stored = np.load(cache)
    ink, areas, colour, label = (torch.from_numpy(stored[key]) for key in ("ink", "areas", "colour", "label"))
    return Icons(
        ink,
        areas,
        colour,
        label,
        stored["style"].tolist(),
        stored["names"].tolist(),
        torch.from_numpy(stored["importance"]),
        int(stored["left_out"]),
    )


# --- Batches: pictures and captions -------------------------------------------------------------------------------

PALETTE = {
    "black": (0, 0, 0),
    "white": (1, 1, 1),
    "red": (0.8, 0.15, 0.15),
    "green": (0.2, 0.65, 0.25),
    "blue": (0.15, 0.3, 0.8),
    "yellow": (0.95, 0.85, 0.2),
    "orange": (0.95, 0.55, 0.1),
    "purple": (0.55, 0.25, 0.7),
    "grey": (0.5, 0.5, 0.5),
    "pink": (0.95, 0.6, 0.75),
}
PLAIN = (
    "{}",
    "a {}",
    "a picture of a {}",
    "a photo of {}",
    "a photo of a {}",
    "an icon of a {}",
    "a drawing of a {}",
    "a photo of {} from some other kind of domain.",
)
STYLED = (
    "a {style} icon of a {}",
    "a {style} picture of a {}",
    "a {style} drawing of a {}",
    "{} {style}",
    "a photo of {} from {style} domain.",
)


def colour_names(rgb):
    """[n, 3] in [0, 1] -> the nearest colour's name, a list of n."""
    names = list(PALETTE)
    return [names[i] for i in torch.cdist(rgb, torch.tensor(list(PALETTE.values()))).argmin(1).tolist()]


class Batches:
    """Random batches of augmented pictures with the captions that are true of them.

    An icon is drawn with probability ~ importance of its name * n^-0.5 (n icons have it), so that rare things are
    seen too. One eighth of
    a batch are drawings with colours of their own; the others get random ink and paper, mostly dark on white, and two
    fifths of them are coloured in.
    """

    def __init__(self, icons, generator, numpy_generator):
        self.icons, self.generator, self.random = icons, generator, numpy_generator
        n, counts = len(icons.ink), torch.bincount(icons.label, minlength=len(icons.names)).clamp(min=1)
        weight = icons.importance[icons.label] * counts[icons.label] ** -0.5
        self.ink_weight, self.colour_weight = weight[:n], weight[n:]

    def rand(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def ink_and_paper(self, n):
        """Two colours [n, 3] for n drawings: 60 % dark on (nearly) white, 20 % any colour on white, else any on any."""
        ink, paper, kind = self.rand(n, 3) * 0.9, self.rand(n, 3), self.rand(n, 1)
        grey = kind < 0.6
        ink = torch.where(grey, self.rand(n, 1) * 0.25, ink)
        paper = torch.where(grey, 1 - self.rand(n, 1) * 0.1, paper)
        paper = torch.where((kind >= 0.6) & (kind < 0.8), 1.0, paper)
        too_close = (ink - paper).abs().mean(1, keepdim=True) < 0.3
        return ink, torch.where(too_close, 1 - ink.round(), paper)

    def colour_in(self, drawn, ink):
        """Drawings in their ink, some coloured in: (premultiplied RGBA [n, 4, 64, 64], coloured [n])."""
        n = len(drawn)
        alpha, areas = self.icons.ink[drawn][:, None].float() / 255, self.icons.areas[drawn]
        coloured = (self.rand(n) < 0.4) & (areas > 0).flatten(1).any(1)
        fill = torch.where(
            self.rand(n, 1, AREAS + 1) < 0.5, self.rand(n, 3, 1), self.rand(n, 3, AREAS + 1)
        )  # some share one
        under = fill.gather(2, areas.flatten(1).long()[:, None].expand(-1, 3, -1)).view(n, 3, PIXELS, PIXELS)
        filled = (areas[:, None] > 0) & coloured[:, None, None, None]
        rgb = ink[..., None, None] * alpha + torch.where(filled, under * (1 - alpha), 0.0)
        return torch.cat([rgb, torch.where(filled, 1.0, alpha)], 1), coloured

    def warp(self, layers):
        """Random rotation, scale, stretch, shear, shift and mirror: [n, 4, 64, 64] -> [n, 4, 56, 56]."""
        n = len(layers)
        angle, shear, shift = self.randn(n) * 0.13, self.randn(n) * 0.06, (self.rand(n, 2) - 0.5) * 0.25
        scale = 1 / (0.7 + 0.3 * self.rand(n))
        x, y = scale * (self.randn(n) * 0.07).exp(), scale * (self.randn(n) * 0.07).exp()
        mirror = torch.where(self.rand(n) < 0.5, -1.0, 1.0)
        rows = torch.stack(
            [
                torch.stack([x * angle.cos() * mirror, -y * angle.sin() + shear, shift[:, 0]], 1),
                torch.stack([x * angle.sin() * mirror, y * angle.cos(), shift[:, 1]], 1),
            ],
            1,
        )  # [n, 2, 3]
        size = MINI["image_size"]
        return F.grid_sample(layers, F.affine_grid(rows, (n, 4, size, size), align_corners=False), align_corners=False)

    def pictures(self, n):
        """(images [n, 3, 56, 56] normalised, rows [n] of the icons, styles, ink and paper colours in words)."""
        k = n // 8
        drawn = torch.multinomial(self.ink_weight, n - k, generator=self.generator)
        own = torch.multinomial(self.colour_weight, k, generator=self.generator)
        ink, paper = self.ink_and_paper(n - k)
        inked, filled = self.colour_in(drawn, ink)
        coloured = self.icons.colour[own].float() / 255
        tinted = 1 - 0.3 * self.rand(k, 3) * (self.rand(k, 1) < 0.5)
        rgba = torch.cat([inked, torch.cat([coloured[:, :3] * coloured[:, 3:], coloured[:, 3:]], 1)])
        warped, paper = self.warp(rgba), torch.cat([paper, tinted])
        images = warped[:, :3] + (1 - warped[:, 3:]) * paper[..., None, None]
        images = (images - MINI_MEAN[0]) / MINI_STD[0]
        rows = torch.cat([drawn, own + len(self.icons.ink)])
        filled = filled.tolist() + [False] * k
        styles = [
            "colourful" if fill else self.icons.style[row] for row, fill in zip(rows.tolist(), filled, strict=True)
        ]
        inks = [
            "many colours" if fill else name
            for name, fill in zip(colour_names(ink) + ["many colours"] * k, filled, strict=True)
        ]
        return images, rows, styles, inks, colour_names(paper)

    def caption(self, name, style, colours):
        """A caption and what it claims beyond the name: (text, style or "", colours or "")."""
        says_style, says_colour = self.random.random() < 0.65, self.random.random() < 0.2
        template = STYLED if says_style else PLAIN
        text = template[self.random.integers(len(template))].format(name, style=style)
        return text + (f" in {colours}" if says_colour else ""), style * says_style, colours * says_colour

    def draw(self, n):
        """(images, captions, true [n, n]): true[i, j] where caption j is true of picture i."""
        images, rows, styles, inks, papers = self.pictures(n)
        labels = self.icons.label[rows]
        colours = [f"{ink} on {paper}" for ink, paper in zip(inks, papers, strict=True)]
        captions, said_styles, said_colours = zip(
            *(
                self.caption(self.icons.names[label], style, colour)
                for label, style, colour in zip(labels.tolist(), styles, colours, strict=True)
            ),
            strict=True,
        )
        true = labels[:, None] == labels
        for said, actual in ((said_styles, styles), (said_colours, colours)):
            said, actual = np.array(said), np.array(actual)
            true &= torch.from_numpy((said == "")[None] | (actual[:, None] == said[None]))
        return images, list(captions), true


# --- Training -----------------------------------------------------------------------------------------------------


def contrastive_loss(images, texts, true, scale):
    """CLIP's symmetric cross-entropy, the target spread evenly over all captions (pictures) that are true."""
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T  # [n, n]
    target = true.float()
    by_image = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (by_image + by_text) / 2, true.gather(1, logits.argmax(1, keepdim=True)).float().mean()


def drop_patches(patches, keep):
    """A random share `keep` of each picture's patches: [B, N, W] -> [B, N * keep, W]. Halves the work."""
    order = torch.rand(patches.shape[:2], device=patches.device).argsort(1)[:, : int(patches.shape[1] * keep)]
    return patches.gather(1, order[..., None].expand(-1, -1, patches.shape[2]))


def optimiser_for(model, lr):
    """AdamW; the text tower at half the rate, weight decay on matrices only."""
    visual = {name: p for name, p in model.named_parameters() if name.startswith("visual")}
    text = [p for name, p in model.named_parameters() if name not in visual]
    groups = [
        dict(params=[p for p in visual.values() if p.ndim > 1], weight_decay=0.05, share=1.0),
        dict(params=[p for p in visual.values() if p.ndim < 2], weight_decay=0.0, share=1.0),
        dict(params=text, weight_decay=0.01, share=0.5),
    ]
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.98), eps=1e-6)


class Pretraining:
    """The model, its optimiser, the random generators and the log: what a checkpoint holds."""

    def __init__(self, icons, args):
        torch.manual_seed(args.seed)
        self.args, self.device, self.step, self.seconds, self.log = args, torch.device(args.device), 0, 0.0, []
        self.steps = args.samples // args.batch
        model = build_mini(normalise=True).to(self.device)
        model.visual.conv1.to(memory_format=torch.channels_last)
        self.clip = PromptableCLIP(model, MiniTokenizer(), MINI_MEAN, MINI_STD, "mini")
        self.optimiser = optimiser_for(model, args.lr)
        self.batches = Batches(icons, torch.Generator().manual_seed(args.seed), np.random.default_rng(args.seed))

    def set_rate(self):
        warm = min(1.0, (self.step + 1) / 300)
        rate = self.args.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]

    def train_step(self):
        """One batch; returns (loss, accuracy). All patches are used in the last eighth of the run."""
        self.set_rate()
        images, captions, true = self.batches.draw(self.args.batch)
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device))
        with autocast, sdpa_kernel(SDPBackend.MATH):
            patches = self.clip.patches(images)
            patches = drop_patches(patches, 0.5) if self.step < self.steps * 7 // 8 else patches
            features, texts = self.clip.encode_tokens(patches), self.clip.encode_text(captions)
        scale = self.clip.model.logit_scale.exp()
        loss, accuracy = contrastive_loss(features.float(), texts.float(), true.to(self.device), scale)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.clip.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.clip.model.logit_scale.clamp_(0, math.log(100))
        return loss.item(), accuracy.item()

    def state(self):
        return dict(
            model=self.clip.model.state_dict(),
            optimiser=self.optimiser.state_dict(),
            step=self.step,
            seconds=self.seconds,
            log=self.log,
            samples=self.args.samples,
            batch=self.args.batch,
            torch=torch.get_rng_state(),
            batches=self.batches.generator.get_state(),
            captions=self.batches.random.bit_generator.state,
        )

    def save(self, path):
        part = path.with_suffix(".part")
        torch.save(self.state(), part)
        os.replace(part, path)

    def resume(self, path):
        state = torch.load(path, map_location=self.device, weights_only=True)
        if (state["samples"], state["batch"]) != (self.args.samples, self.args.batch):
            raise UserError(
                f"{path} is a run of {state['samples']} samples in batches of {state['batch']}. Ask for the "
                "same, or give another --work folder."
            )
        self.clip.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        torch.set_rng_state(state["torch"].cpu())
        self.batches.generator.set_state(state["batches"].cpu())
        self.batches.random.bit_generator.state = state["captions"]

    def run(self, checkpoint):
        if checkpoint.exists():
            self.resume(checkpoint)
        self.clip.train()
        bar = tqdm(total=self.steps, initial=self.step, unit=" steps", smoothing=0.05)
        loss = accuracy = None
        while self.step < self.steps:
            start = time.perf_counter()
            now_loss, now_accuracy = self.train_step()
            loss = now_loss if loss is None else 0.95 * loss + 0.05 * now_loss
            accuracy = now_accuracy if accuracy is None else 0.95 * accuracy + 0.05 * now_accuracy
            self.seconds += time.perf_counter() - start
            self.step += 1
            bar.update()
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}")
                self.log.append(
                    dict(
                        step=self.step,
                        samples=self.step * self.args.batch,
                        loss=round(loss, 4),
                        accuracy=round(accuracy, 4),
                        seconds=round(self.seconds),
                    )
                )
            if self.step % 250 == 0 or self.step == self.steps:
                self.save(checkpoint)
        bar.close()


def export(training, icons, out):
    """Weights in half precision with batch norm folded, the recipe in the file's metadata; loss log beside it."""
    model = training.clip.model.eval().cpu()
    model.visual.conv1 = fold_batch_norm(model.visual.conv1)
    args, last = training.args, training.log[-1]
    recipe = dict(
        samples=args.samples,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        device=args.device,
        minutes=round(training.seconds / 60),
        icons=len(icons.label),
        names=len(icons.names),
        near_copies_left_out=icons.left_out,
        packages=SOURCES["packages"],
        final_loss=last["loss"],
        final_accuracy=last["accuracy"],
    )
    part = out.with_suffix(".part")
    save_file(
        {key: value.half().contiguous() for key, value in model.state_dict().items()},
        part,
        metadata={"recipe": json.dumps(recipe)},
    )
    os.replace(part, out)
    with open(out.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, training.log[0])
        writer.writeheader()
        writer.writerows(training.log)
    return recipe


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_200_000, help="pictures seen (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("artifacts/pretraining"),
        help="packages, rendered icons and checkpoint (default %(default)s)",
    )
    parser.add_argument("--tarballs", type=Path, help="folder that already holds the packages' .tgz files")
    parser.add_argument("--out", type=Path, default=Path("prosutils/data/miniclip.safetensors"))
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    try:
        for folder in (args.work, args.out.parent):
            folder.mkdir(parents=True, exist_ok=True)
        folder = fetch_packages(args.work, args.tarballs)["@iconify/json"]
        icons = load_icons(folder, args.work / "icons.npz")
        print(
            f"{len(icons.ink)} drawings in ink, {len(icons.colour)} in colours, {len(icons.names)} names; "
            f"{icons.left_out} near copies of the benchmark's drawings left out"
        )
        training = Pretraining(icons, args)
        training.run(args.work / "checkpoint.pt")
        print(json.dumps(export(training, icons, args.out), indent=1))
    except (UserError, PermissionError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
