"""The investigation of notebook 01: four splits that names and rows cannot tell apart, and a check that is tried."""

import pytest
import torch

from prosutils import ImageDomains
from prosutils.teaching import leaks


@pytest.fixture(scope="module")
def drawings():
    """18 classes x 3 domains x 4 pictures without any symmetry, in memory."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(216, 3, 8, 8, generator=generator)
    rows = torch.arange(216)
    domains, classes = ("chalk", "emoji", "stamp"), tuple(f"class{i:02d}" for i in range(18))
    data = ImageDomains(None, domains, classes, rows.tolist(), rows // 72, rows % 72 // 4, [])

    class Drawn(ImageDomains):
        def load(self, row):
            from torchvision.transforms.v2.functional import to_pil_image

            return to_pil_image(coarse[row]).resize((64, 64), 0)

    return Drawn(**vars(data))


def views(images):
    """The images in all eight positions."""
    turned = [torch.rot90(images, k, (2, 3)) for k in range(4)]
    return [*turned, *(image.flip(3) for image in turned)]


def standard(images):
    flat = images.flatten(1) - images.flatten(1).mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True)


def nearest(splits, positions=8):
    """The split in which a training picture is most like a test picture in one of the positions."""
    likeness = [
        max(float((standard(s.train.images) @ standard(v).T).max()) for v in views(s.test.images)[:positions])
        for s in splits
    ]
    return likeness.index(max(likeness))


def test_names_show_no_leak(drawings):
    splits = leaks.four_splits(drawings)
    assert len(splits) == 4
    for split in splits:
        assert not set(split.train.classes) & set(split.test.classes)
        assert set(split.test.domains) - {"emoji"} and not set(split.train.domains) & (
            set(split.test.domains) - {"emoji"}
        )
        pixels = [set(map(bytes, part.images.numpy())) for part in (split.train, split.test)]
        assert not pixels[0] & pixels[1]
    again = leaks.four_splits(drawings)
    assert all(torch.equal(a.train.images, b.train.images) for a, b in zip(splits, again))


def test_a_check_by_likeness_in_all_positions_finds_every_leak(drawings, capsys):
    assert leaks.judge_leak_check(nearest, drawings)
    assert "in 8 of 8 new quartets" in capsys.readouterr().out
    assert not leaks.judge_leak_check(lambda splits: nearest(splits, 1), drawings)
    assert "Not yet." in capsys.readouterr().out


@pytest.mark.parametrize("body, words", [("...", "Not solved yet."), ("splits[0]", "returns no answer")])
def test_an_unfinished_check_is_named(drawings, capsys, body, words):
    namespace = {}
    exec(f"def check(splits):\n    {body}", namespace)
    assert not leaks.judge_leak_check(namespace["check"], drawings)
    assert words in capsys.readouterr().out
