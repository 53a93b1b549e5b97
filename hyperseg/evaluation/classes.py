"""Do the classes of a network, or of predictions, fit those of a data set?"""

import re

from hyperseg.data.errors import DataError
from hyperseg.data.labels import LabelSet

# Data sets with the classes that networks of this data set were published with.
_PUBLISHED = {"cityscapes": "cityscapes", "camvid": "camvid-kaggle", "voc": "voc"}


def match_classes(network: LabelSet, data: LabelSet) -> list[str]:
    """Check that class i of the network is class i of the data set.

    A network may have classes after those of the data set, as the published CamVid networks have Void; predictions of
    these count as wrong.

    Returns:
        Messages about what the user should know; none if the classes are the same.

    Raises:
        DataError: the network cannot be scored on this data set.
    """
    extra = network.classes[len(data) :]
    pairs = zip(network.classes, data.classes, strict=False)
    unlike = [(index, ours, theirs) for index, (ours, theirs) in enumerate(pairs) if _plain(ours) != _plain(theirs)]
    named = not network.classes[0].startswith("class ")  # a network of one's own may not name its classes
    if len(network) < len(data) or (extra and unlike and named and network.name != data.name):
        raise DataError(
            f"the network has {_counted(network)} but the data set has {_counted(data)}; score it on {_advice(network)}"
        )
    messages = []
    if extra:
        messages.append(
            f"the network has {len(extra)} more {'class' if len(extra) == 1 else 'classes'} than the data set "
            f"({', '.join(extra[:4])}{', ...' if len(extra) > 4 else ''}); pixels predicted so count as wrong"
        )
    if unlike and named:
        listed = ", ".join(f"{index}: {ours} / {theirs}" for index, ours, theirs in unlike[:4])
        more = f" and {len(unlike) - 4} more" if len(unlike) > 4 else ""
        messages.append(f"classes are called differently by network / data set ({listed}{more}); check their order")
    return messages


def _advice(network: LabelSet) -> str:
    fitting = _PUBLISHED.get(network.name)
    return f"--data {fitting}" if fitting else "the data set that it was trained for, or a folder with its classes"


def _counted(table: LabelSet) -> str:
    names = ", ".join(table.classes[:3])
    return f"{len(table)} {'class' if len(table) == 1 else 'classes'} ({names}{', ...' if len(table) > 3 else ''})"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())
