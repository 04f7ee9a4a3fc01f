"""The sizes of pictures for a paper: as wide as a column or the page of a journal.

Charts are laid out at three pixels for two points, so that their letters of 12 pixels are printed
at about 8 points, and the whole picture is then scaled to exactly the width that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

PIXELS_A_POINT = 1.5
AXIS = 52  # pixels that labels and padding take beside a chart
GAP = 34  # between two charts


@dataclass(frozen=True)
class Paper:
    """A width on paper.

    Attributes:
        name: of the option, and in the files' names.
        inches: of the whole picture.
        charts: beside each other, at most.
        panels: of small multiples beside each other.
        maps: heat maps beside each other.
    """

    name: str
    inches: float
    charts: int
    panels: int
    maps: int

    @property
    def points(self) -> float:
        """The width in points, 72 an inch."""
        return 72 * self.inches

    @property
    def pixels(self) -> int:
        """The width that charts are laid out in."""
        return round(self.points * PIXELS_A_POINT)

    @property
    def legend(self) -> int:
        """The pixels that a legend may take."""
        return self.pixels - 28 - AXIS // 2

    def chart_width(self, charts: int) -> int:
        """Return the pixels of each of so many charts beside each other, without its axis."""
        return (self.pixels - 28 - (charts - 1) * GAP) // charts - AXIS


PAPERS = {
    "column": Paper("column", 3.3, charts=1, panels=2, maps=1),
    "page": Paper("page", 7.0, charts=2, panels=4, maps=2),
}
