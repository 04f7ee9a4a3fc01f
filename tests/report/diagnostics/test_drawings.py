from pathlib import Path

import pytest
from matplotlib.image import imread

from fedmoe_app.report.plots import plot_run
from fedmoe_app.results.folder import RunFolder
from tests.report.diagnostics.lines import Line, failed, full, plain, run, start

ALL = ["conflict", "consistency", "similarity", "selection", "weights"]
NO_PAIRS = [name for name in ALL if name != "similarity"]


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([start(), plain(1)], []),
        ([start(), failed(1)], []),
        (run(2, 4, 2, 8), ALL),
        (run(1, 1, 1, 4), NO_PAIRS),
        ([start(), failed(1), full(2, 3, 2, 4, untrained=0.6), failed(3), plain(4)], ALL),
        (run(1, 40, 16, 64, untrained=0.2, matrices=False), ALL),
        (run(14, 100, 1, 8, untrained=0.2, matrices=False), ALL),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_diagnostics_are_drawn_where_a_run_has_them(
    tmp_path: Path, lines: list[Line], names: list[str]
) -> None:
    folder = RunFolder(tmp_path / "a")
    for line in lines:
        folder.append(line)
    paths = [path for path in plot_run(folder.path) if path.stem in ALL]
    assert [path.stem for path in paths] == names
    for path in paths:
        assert min(imread(path).shape[:2]) > 200
