"""Label sets: the classes of each data set, in the order of the networks' output channels, and their colours.

>>> label_set("camvid").classes[8]
'Car'
>>> len(palette(VOC))
768
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hyperseg.models import HyperSegConfig

Color = tuple[int, int, int]

IGNORE_COLOR: Color = (224, 224, 192)  # index 255 of the PASCAL VOC palette: the pale borders of its objects
UNUSED_COLOR: Color = (255, 0, 255)  # of an index without a class: magenta, so that a wrong label is easy to see


@dataclass(frozen=True)
class LabelSet:
    """Names and RGB colours of classes 0..n-1, and the index of unlabelled pixels.

    `background` is the class, if any, of pixels without an object; overlays leave it uncoloured.
    Raises ValueError if names and colours differ in number or do not fit in uint8 labels.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_index: int = 255
    background: int | None = None

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.colors):
            raise ValueError(
                f"label set {self.name!r} has {len(self.classes)} classes but {len(self.colors)} colours; "
                "give one colour for each class"
            )
        if not 1 <= len(self.classes) <= 255:
            raise ValueError(
                f"label set {self.name!r} has {len(self.classes)} classes; "
                "uint8 labels can have 1 to 255 and the ignore index"
            )
        if not len(self.classes) <= self.ignore_index <= 255:
            raise ValueError(
                f"label set {self.name!r} ignores index {self.ignore_index}; take one from {len(self.classes)} to 255, "
                "which is not a class"
            )
        for color in self.colors:
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise ValueError(f"label set {self.name!r} has the colour {color}; give (R, G, B), each 0 to 255")

    def __len__(self) -> int:
        return len(self.classes)

    def with_colors(self, colors: Mapping[str, Color]) -> "LabelSet":
        """Return this label set with other colours for the classes that are named."""
        chosen = tuple(colors.get(name, color) for name, color in zip(self.classes, self.colors, strict=True))
        return replace(self, colors=chosen)


def _table(name: str, rows: str, background: int | None = None) -> LabelSet:
    """Build a label set from `rows`: one class per line, "name R G B"."""
    fields = [line.rsplit(maxsplit=3) for line in rows.strip().splitlines()]
    return LabelSet(
        name,
        classes=tuple(field[0].strip() for field in fields),
        colors=tuple((int(r), int(g), int(b)) for _, r, g, b in fields),
        background=background,
    )


def bit_shuffle_color(index: int) -> Color:
    """Return the PASCAL VOC colour of an index (0..255): bits 3j, 3j+1, 3j+2 become bit 7-j of R, G, B. All differ."""
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


# In the order of the train ids.
CITYSCAPES = _table(
    "cityscapes",
    """
    road           128  64 128
    sidewalk       244  35 232
    building        70  70  70
    wall           102 102 156
    fence          190 153 153
    pole           153 153 153
    traffic light  250 170  30
    traffic sign   220 220   0
    vegetation     107 142  35
    terrain        152 251 152
    sky             70 130 180
    person         220  20  60
    rider          255   0   0
    car              0   0 142
    truck            0   0  70
    bus              0  60 100
    train            0  80 100
    motorcycle       0   0 230
    bicycle        119  11  32
    """,
)

# The official code spells class 9 "Pedestrain", and trains and scores Void as a class like any other.
CAMVID = _table(
    "camvid",
    """
    Sky          128 128 128
    Building     128   0   0
    Column-Pole  192 192 128
    Road         128  64 128
    Sidewalk       0   0 192
    Tree         128 128   0
    Sign-Symbol  192 128 128
    Fence         64  64 128
    Car           64   0 128
    Pedestrian    64  64   0
    Bicyclist      0 128 192
    Void           0   0   0
    """,
)

# The classes of SegNet's form of the data: those above without Void, which is ignored there.
CAMVID_11 = LabelSet("camvid-11", CAMVID.classes[:11], CAMVID.colors[:11])

# All classes of the authors' labels, in the order of their table.
CAMVID_32 = _table(
    "camvid-32",
    """
    Animal             64 128  64
    Archway           192   0 128
    Bicyclist           0 128 192
    Bridge              0 128  64
    Building          128   0   0
    Car                64   0 128
    CartLuggagePram    64   0 192
    Child             192 128  64
    Column_Pole       192 192 128
    Fence              64  64 128
    LaneMkgsDriv      128   0 192
    LaneMkgsNonDriv   192   0  64
    Misc_Text         128 128  64
    MotorcycleScooter 192   0 192
    OtherMoving       128  64  64
    ParkingBlock       64 192 128
    Pedestrian         64  64   0
    Road              128  64 128
    RoadShoulder      128 128 192
    Sidewalk            0   0 192
    SignSymbol        192 128 128
    Sky               128 128 128
    SUVPickupTruck     64 128 192
    TrafficCone         0   0  64
    TrafficLight        0  64  64
    Train             192  64 128
    Tree              128 128   0
    Truck_Bus         192 128 192
    Tunnel             64   0  64
    VegetationMisc    192 192   0
    Void                0   0   0
    Wall               64 192   0
    """,
)

VOC = _table(
    "voc",
    """
    background      0   0   0
    aeroplane     128   0   0
    bicycle         0 128   0
    bird          128 128   0
    boat            0   0 128
    bottle        128   0 128
    bus             0 128 128
    car           128 128 128
    cat            64   0   0
    chair         192   0   0
    cow            64 128   0
    dining table  192 128   0
    dog            64   0 128
    horse         192   0 128
    motorbike      64 128 128
    person        192 128 128
    potted plant    0  64   0
    sheep         128  64   0
    sofa            0 192   0
    train         128 192   0
    tv/monitor      0  64 128
    """,
    background=0,
)

_LABEL_SETS = {table.name: table for table in (CITYSCAPES, CAMVID, VOC)}


def label_set(dataset: str) -> LabelSet:
    """Return the label set of "cityscapes", "camvid" or "voc" (any case). Raises ValueError for another name."""
    try:
        return _LABEL_SETS[dataset.lower()]
    except KeyError:
        raise ValueError(
            f"there is no label set for {dataset!r}; there is one for {', '.join(_LABEL_SETS)}, "
            "and default_label_set(n) for n classes of your own"
        ) from None


def label_set_with(classes: Sequence[str]) -> LabelSet | None:
    """Return the label set of a published data set that has exactly these classes, in this order; None without one."""
    known = (*_LABEL_SETS.values(), CAMVID_11, CAMVID_32)
    return next((table for table in known if table.classes == tuple(classes)), None)


def default_label_set(n: int, classes: Sequence[str] | None = None) -> LabelSet:
    """Return a label set for `n` classes of your own (1..255), with distinct colours; default names are "class 0", ...

    Raises ValueError if `n` is out of range or `classes` has another length.
    """
    if not 1 <= n <= 255:
        raise ValueError(f"a label set cannot have {n} classes; uint8 labels can have 1 to 255 classes")
    names = tuple(classes) if classes is not None else tuple(f"class {index}" for index in range(n))
    if len(names) != n:
        raise ValueError(f"{len(names)} class names were given for {n} classes; give one for each class")
    return LabelSet("custom", names, tuple(bit_shuffle_color(index) for index in range(n)))


def label_set_of(config: "HyperSegConfig") -> LabelSet:
    """Return the label set of a network: that of its classes or data set, or a default one if it has others.

    Raises ValueError if it has more than 255 classes.
    """
    try:
        table = label_set(config.dataset)
    except ValueError:
        table = None
    names = tuple(config.class_names) if config.class_names else None
    if names is not None and (exact := label_set_with(names)) is not None:  # such as the 11 classes of SegNet's CamVid
        return exact
    if table is None or len(table) != config.num_classes:
        return default_label_set(config.num_classes, names)
    if names is None or names == table.classes:
        return table
    return LabelSet(table.name, names, table.colors, table.ignore_index, table.background)


def palette(labels: LabelSet) -> list[int]:
    """Return the palette of a PNG in mode "P": 768 numbers, R G B for each index 0..255.

    Classes have their colours, the ignore index is pale, and all other indices are magenta.
    """
    colors = [UNUSED_COLOR] * 256
    colors[: len(labels)] = labels.colors
    colors[labels.ignore_index] = IGNORE_COLOR
    return [value for color in colors for value in color]


def colorize(labels: np.ndarray, table: LabelSet) -> np.ndarray:
    """Return labels (uint8 [H, W]) in the colours of `table`: uint8 [H, W, 3]."""
    return np.array(palette(table), dtype=np.uint8).reshape(256, 3)[labels]
