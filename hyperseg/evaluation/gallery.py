"""The images that a report shows: best, worst and some others."""

import random

from hyperseg.evaluation.results import Evaluation


def choose_images(evaluation: Evaluation, each: int = 4, seed: int = 0) -> dict[str, list[str]]:
    """Return the names of the worst, the best and random images by their own mIoU, without repetition.

    Args:
        evaluation: with scores per image.
        each: most images of a group.
        seed: of the choice of random ones.

    Returns:
        Names by group: "worst" from the worst on, "best" from the best on, "random" in the order of the data set.
    """
    scored = [image for image in evaluation.images if image["miou"] is not None]
    ranked = [image["name"] for image in sorted(scored, key=lambda image: image["miou"])]
    each = min(each, (len(ranked) + 1) // 2)
    worst, rest = ranked[:each], ranked[each:]
    best = rest[::-1][:each]
    others = [image["name"] for image in scored if image["name"] not in {*worst, *best}]
    picked = set(random.Random(seed).sample(others, min(each, len(others))))
    return {"worst": worst, "best": best, "random": [name for name in others if name in picked]}
