"""How a learner's result differs from the right one, in words, where no mistake is known that gives it."""

import torch


def difference(exercise, yours, right):
    """What differs, where no mistake is known that gives it: the shape, the kind of number, or the first entry."""
    if yours.shape != right.shape:
        return other_axes(yours, right, exercise) or (
            f"Your result has the shape {list(yours.shape)}; for these inputs it should be {list(right.shape)}: "
            f"{exercise.shape}."
        )
    if kind(yours) != kind(right):
        return f"Your result holds numbers of type {yours.dtype}; they should be {right.dtype}: {exercise.shape}."
    if not yours.isfinite().all():
        return not_finite(yours)
    if relation(yours, right):
        return relation(yours, right)
    apart = ~torch.isclose(yours.double(), right.double(), rtol=1e-4, atol=1e-5)
    first = tuple(apart.nonzero()[0].tolist())
    where = f"{int(apart.sum())} of {apart.numel()} numbers differ, the first at {list(first)}: " if first else ""
    return f"The shape is right, the numbers are not. {where}yours {yours[first]:.4g}, right {right[first]:.4g}."


def not_finite(yours):
    """What NaN or infinite numbers come from, as a rule."""
    count = int((~yours.isfinite()).sum())
    if yours.isnan().any():
        return f"{count} of {yours.numel()} numbers of your result are NaN. Is 0 divided by 0 somewhere?"
    return (
        f"{count} of {yours.numel()} numbers of your result are infinite. Is something divided by zero, or set to "
        "infinity where it should be left out or be 0?"
    )


def other_axes(yours, right, exercise):
    """What happened to the axes where the numbers are right and the shape is not, or None."""
    values = [part.flatten().double().sort().values for part in (yours, right)]
    if values[0].shape != values[1].shape or not torch.allclose(*values, rtol=1e-4, atol=1e-5, equal_nan=True):
        return None
    shapes = f"Yours is {list(yours.shape)}, wanted is {list(right.shape)}: {exercise.shape}."
    if yours.squeeze().shape == right.squeeze().shape:
        return f"The numbers are right, but an axis of length 1 is too many or missing. {shapes}"
    if sorted(yours.shape) == sorted(right.shape):
        return f"The numbers are right, but the axes are in another order. {shapes}"
    return f"The numbers are right, but they lie in other axes. {shapes}"


def relation(yours, right):
    """How results of the right shape depend on the right ones, where that can be put in words, or None."""
    a, b = yours.double(), right.double()
    if a.numel() == 0 or kind(yours) == "bool":
        return None
    if a.ndim and torch.allclose(a.flatten().sort().values, b.flatten().sort().values, rtol=1e-4, atol=1e-5):
        return (
            "The numbers are right, but they stand in other places. Look at the order in which you put them together."
        )
    if kind(yours) == "float" and a.abs().max() > 1e-9 and b.abs().max() > 1e-9:
        factor = float((a * b).sum() / (b * b).sum())
        if abs(factor) > 1e-6 and torch.allclose(a, factor * b, rtol=1e-4, atol=1e-6):
            if a.numel() > 1 or abs(factor + 1) < 1e-4:
                what = (
                    "have the wrong sign" if abs(factor + 1) < 1e-4 else f"are {factor:.4g} times what they should be"
                )
                return f"The shape is right, but all numbers {what}. Is something divided or multiplied once too often?"
    if a.numel() > 1 and float((a - b).max() - (a - b).min()) < 1e-5:
        return f"The shape is right, but all numbers are off by {float((a - b).mean()):.4g}. Is something added twice?"
    if a.ndim and len(a) > 1:
        good = [bool(torch.allclose(x, y, rtol=1e-4, atol=1e-5)) for x, y in zip(a, b, strict=True)]
        if any(good):
            places = [i for i, right_here in enumerate(good) if not right_here]
            return (
                f"Of {len(good)} entries along the first axis {len(good) - len(places)} are right; wrong are "
                f"{', '.join(map(str, places[:4]))}{' ...' if len(places) > 4 else ''}. What is different about them?"
            )
    return None


def as_tensor(value):
    """A tensor, array, number or tuple of numbers on the CPU; a single number as float, for 1 is as good as 1.0."""
    value = torch.as_tensor(value).detach().cpu()
    return value if value.ndim else value.double()


def same(a, b):
    return (
        a.shape == b.shape
        and kind(a) == kind(b)
        and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    )


def kind(tensor):
    return "bool" if tensor.dtype == torch.bool else "float" if tensor.is_floating_point() else "int"
