"""Which ways of OpenStreetMap are roads, and in which directions they may be driven."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from utils.errors import UserError

LINKED = ("motorway", "trunk", "primary", "secondary", "tertiary")  # classes that have ramps of their own
DRIVE = frozenset(
    (*LINKED, *(f"{name}_link" for name in LINKED), "unclassified", "residential", "living_street", "road")
)
NOT_BUILT = frozenset(("abandoned", "construction", "demolished", "disused", "no", "planned", "proposed", "razed"))
CLOSED = frozenset(("no", "private", "agricultural", "forestry"))
ACCESS = ("motorcar", "motor_vehicle", "vehicle", "access")  # the most specific tag decides
ONE_WAY_CLASSES = frozenset(("motorway", "motorway_link"))  # unless `oneway=no` says otherwise
ROUNDABOUTS = frozenset(("roundabout", "circular"))

Tags = Mapping[str, str]


@dataclass(frozen=True)
class RoadChoice:
    """Which classes of `highway` are taken (None: all that are built), and whether roads closed to cars are."""

    classes: frozenset[str] | None
    only_open: bool

    @staticmethod
    def parse(text: str) -> "RoadChoice":
        """`drive`, `all`, or classes such as `primary,secondary`.

        Raises:
            UserError: it is neither.
        """
        if text == "drive":
            return RoadChoice(DRIVE, only_open=True)
        if text == "all":
            return RoadChoice(None, only_open=False)
        classes = [name.strip().removeprefix("highway=") for name in text.split(",")]
        if not all(re.fullmatch(r"[a-z_]+", name) for name in classes):
            raise UserError(f"--network: found {text!r}, expected drive, all, or classes such as primary,secondary")
        return RoadChoice(frozenset(classes), only_open=False)

    def takes_class(self, highway: str) -> bool:
        """Whether roads of this class are taken."""
        return highway not in NOT_BUILT if self.classes is None else highway in self.classes

    def takes(self, tags: Tags) -> bool:
        """Whether a way with these tags is taken."""
        if tags.get("area") == "yes" or not self.takes_class(tags.get("highway", "no")):
            return False
        return not (self.only_open and next(filter(None, map(tags.get, ACCESS)), "yes") in CLOSED)


def directions(tags: Tags) -> tuple[bool, bool]:
    """Whether a way may be driven forward, and backward."""
    oneway = tags.get("oneway", "").lower()
    if oneway in ("-1", "reverse"):
        return False, True
    if oneway in ("yes", "true", "1"):
        return True, False
    is_implied = tags.get("highway") in ONE_WAY_CLASSES or tags.get("junction") in ROUNDABOUTS
    # Where the direction changes with the hour (reversible, alternating) both are driven.
    return True, bool(oneway) or not is_implied


def restriction_kind(get: Callable[[str], str | None]) -> str:
    """`no_left_turn`, `only_straight_on`, ...: the restriction that cars obey; empty if there is none for them."""
    if get("type") != "restriction" or "motorcar" in (get("except") or "").split(";"):
        return ""
    kind = get("restriction:motorcar") or get("restriction:motor_vehicle") or get("restriction") or ""
    return kind if kind.startswith(("no_", "only_")) else ""
