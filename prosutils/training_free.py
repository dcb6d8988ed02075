"""Methods without training: CLIP's features are shifted, projected or mapped by a few statistics.

Each keeps one idea of a method that does more, so that the idea can be compared with ProS under one protocol. The only
images used are the training images of a split: none of the held-out domain, and none of an unseen class. The only words
used are the names of the seen classes and the fixed list STYLES.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .prompts import readable
from .tuned import TunedCLIP, register

#: Ways to picture a thing, in words. None names a technique of PictoNet's far tier. "sketch", "painting" and "clipart"
#: are domains of other benchmarks too: where one of them is held out, CLIP is given its name.
STYLES = (
    *("photo", "photograph", "close-up", "snapshot", "black and white photo", "blurry photo", "rendering"),
    *("painting", "watercolor", "sketch", "drawing", "doodle", "cartoon", "clipart", "illustration", "engraving"),
    *("icon", "logo", "symbol", "silhouette", "poster", "sticker", "sculpture", "tattoo", "toy"),
)


class TrainingFree(TunedCLIP):
    """CLIP, with `move` applied to the normalised features of images."""

    stages = ()

    def build_text(self) -> None:
        self.captions = [f"a photo of a {readable(name)}." for name in self.classes]
        self.register_buffer("text_mean", self.read_words(self.captions).mean(0), persistent=False)  # [D]

    def trainable(self, stage: int) -> dict[str, list[nn.Parameter]]:
        return {}

    def move(self, features: torch.Tensor) -> torch.Tensor:
        """Image features [B, D], L2-normalised -> [B, D]."""
        raise NotImplementedError

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.move(F.normalize(self.clip.encode_image(images), dim=1))

    @torch.no_grad()
    def read_words(self, captions: Sequence[str]) -> torch.Tensor:
        """C captions -> CLIP's features [C, D], L2-normalised."""
        return F.normalize(self.clip.encode_text(captions), dim=1)

    def encode_classes(self) -> torch.Tensor:
        return self.encode_words(self.captions)


@register("centred")
class Centred(TrainingFree):
    """The mean of the training images' features is subtracted from every image's, and the mean of the seen classes'
    captions from a caption's: the first step of BASIC (NeurIPS 2025).

    Read: the released code of BASIC, github.com/billpsomas/icir (463cc1d), where the mean is that of LAION's images.
    Uses the training images, without their labels, and the names of the seen classes.
    """

    label = "Centred"
    statistics: tuple[str, ...] = ("image_mean",)
    image_mean: torch.Tensor
    text_mean: torch.Tensor

    def build(self) -> None:
        self.register_buffer("image_mean", torch.zeros_like(self.text_mean))  # [D]

    def fit_features(self, features: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor) -> None:
        self.image_mean.copy_(F.normalize(features, dim=1).mean(0))

    def move(self, features: torch.Tensor) -> torch.Tensor:
        return features - self.image_mean

    def encode_words(self, captions: Sequence[str]) -> torch.Tensor:
        return self.read_words(captions) - self.text_mean


@register("domain-centroids")
class DomainCentroids(Centred):
    """The mean of an image's domain is subtracted from its feature. At a test the domain is unknown: what is subtracted
    is the mean of the training domains' centroids, each weighted by how near it is to the feature.

    Read: the abstract of SHED (arXiv 2605.16973), which subtracts the centroid of each source domain while it trains
    and weighs centroids, made of captions, at the test. Its code and its weights' formula were not found; ours is a
    softmax of cosines with the temperature of the training loss. Uses the training images and their domains.
    """

    label = "Domain centroids"
    statistics = ("centroids",)
    centroids: torch.Tensor

    def build(self) -> None:
        self.register_buffer("centroids", torch.zeros(len(self.domains), self.clip.dim))  # [M, D]

    def fit_features(self, features: torch.Tensor, class_index: torch.Tensor, domain_index: torch.Tensor) -> None:
        features = F.normalize(features, dim=1)
        for domain, centroid in enumerate(self.centroids):
            centroid.copy_(features[domain_index == domain].mean(0))

    def move(self, features: torch.Tensor) -> torch.Tensor:
        nearness = self.similarities(features, self.centroids) / self.config.temperature  # [B, M]
        return features - nearness.softmax(1) @ self.centroids


@register("contrastive-pca")
class ContrastivePCA(Centred):
    """Centred features, projected on directions in which words for things vary more than words for styles: the
    projection of BASIC (NeurIPS 2025).

    With the covariances A of things and B of styles, the eigenvectors of (1 - weight) A - weight B whose eigenvalue is
    positive, 250 at most. Read: the released code of BASIC, github.com/billpsomas/icir (463cc1d), for weight and
    number; it takes things from a large list of words, expands queries, and fuses image and text, all left out here.
    Uses, beside the training images' mean, the names of the seen classes and STYLES.
    """

    label = "Contrastive PCA"
    weight, directions = 0.2, 250
    projection: torch.Tensor

    def build(self) -> None:
        super().build()
        things = self.read_words([readable(name) for name in self.classes])
        styles = self.read_words(STYLES)
        middle = things.mean(0)
        things, styles = ((words - middle).double() for words in (things, styles))
        contrast = (1 - self.weight) * things.T @ things / (len(things) - 1)
        contrast = contrast - self.weight * styles.T @ styles / (len(styles) - 1)
        values, vectors = torch.linalg.eigh(contrast.cpu())  # ascending
        kept = vectors[:, -self.directions :][:, values[-self.directions :] > 1e-9]
        self.register_buffer("projection", (kept @ kept.T).to(self.text_mean), persistent=False)  # [D, D]

    def move(self, features: torch.Tensor) -> torch.Tensor:
        return super().move(features) @ self.projection

    def encode_words(self, captions: Sequence[str]) -> torch.Tensor:
        return super().encode_words(captions) @ self.projection


@register("text-map")
class TextDomainMap(TrainingFree):
    """A linear map fitted on captions alone and applied to images. It takes "a {style} of a {class}" to the mean of that
    class over all styles: ridge regression towards the identity, in closed form. No image is used.

    Read: the abstract of CLAIR (arXiv 2508.12290), which maps one given domain to another, in closed form, by captions.
    Its formula and its code were not found. As the test domain is unknown here, there is no such pair of domains: the
    target and the regression are ours. The penalty is the captions' mean variance. Uses the names of the seen classes and STYLES.
    """

    label = "Text-only domain map"
    map: torch.Tensor

    def build(self) -> None:
        captions = [f"a {style} of a {readable(name)}." for name in self.classes for style in STYLES]
        words = self.read_words(captions).reshape(len(self.classes), len(STYLES), -1)
        words = (words - words.mean((0, 1))).double()  # [S, styles, D]
        start, end = words.flatten(0, 1), words.mean(1, keepdim=True).expand_as(words).flatten(0, 1)
        gram, unit = start.T @ start, torch.eye(start.shape[1], device=start.device, dtype=start.dtype)
        penalty = gram.trace() / len(gram) * unit
        found = torch.linalg.solve((gram + penalty).cpu(), (start.T @ end + penalty).cpu())
        self.register_buffer("map", found.to(self.text_mean), persistent=False)  # [D, D]

    def move(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.map

    def encode_words(self, captions: Sequence[str]) -> torch.Tensor:
        return self.read_words(captions) @ self.map
