"""Runs and comparisons from Python: in a script, a notebook, a test.

::

    from fedmoe_app import compare_schemes, load_run, run

    done = run({"scheme": "fcmoe", "data.alpha": 0.1, "num-server-rounds": 3}, clients=4)
    done.metrics[["accuracy", "loss"]]      # a pandas frame, one row a round
    model = done.model()                     # transformers

The clients are simulated in this process, one after the other, without Ray and without sockets:
the model is the same bit for bit as that of ``fedmoe run`` and of real nodes. Keys are those of the
run config; all others have their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe_app.config.config_file import read_config_file
from fedmoe_app.config.overrides import with_absolute_paths, with_output_dir
from fedmoe_app.config.parse import default_run_config, parse_run_config
from fedmoe_app.results.classes import kept_classes
from fedmoe_app.results.finding import find_run
from fedmoe_app.results.folder import CONFIG_FILE, ResultsError, read_rounds

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedmoe_app.config.schema import RunConfig

_NESTED = ("clients", "routing", "diagnostics", "failures", "rejected", "seconds")


@dataclass(frozen=True)
class Picture:
    """A picture that a notebook shows where it is a cell's last line.

    Attributes:
        path: its PNG file.
    """

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True)
class RunResult:
    """A run that is over, or still goes on: what its result folder says.

    Attributes:
        path: the result folder.
    """

    path: Path

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` as they were when this was first asked."""
        return read_rounds(self.path)

    @property
    def config(self) -> RunConfig:
        """The whole run config."""
        return parse_run_config(read_config_file(self.path / CONFIG_FILE))

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a round, by its number: accuracy, loss, bytes, clients, seconds."""
        import pandas as pd

        rows = [
            {key: value for key, value in line.items() if key not in _NESTED}
            | {"seconds": (line.get("seconds") or {}).get("round")}
            for line in self.lines
        ]
        return pd.DataFrame(rows).set_index("round")

    @property
    def clients(self) -> pd.DataFrame:
        """One row a client and round: what each told of itself and what it sent."""
        import pandas as pd

        rows = [
            {"round": line["round"]} | client for line in self.lines for client in line["clients"]
        ]
        return pd.DataFrame(rows).set_index(["round", "client"]) if rows else pd.DataFrame()

    @property
    def classes(self) -> pd.DataFrame:
        """One row a class of the kept model on the server's test set; empty where it has none.

        Test rows, precision, recall and F1; ``confusion`` has who is taken for whom.
        """
        import pandas as pd

        found = kept_classes(self.path, self.lines)
        if found is None:
            return pd.DataFrame()
        columns = {
            "rows": found.support,
            "precision": found.precision,
            "recall": found.recall,
            "f1": found.f1,
        }
        return pd.DataFrame(columns, index=pd.Index(found.names, name="class"))

    @property
    def confusion(self) -> pd.DataFrame:
        """Test rows by their class (down) and the class given to them (right)."""
        import pandas as pd

        found = kept_classes(self.path, self.lines)
        if found is None:
            return pd.DataFrame()
        return pd.DataFrame(found.confusion, index=found.names, columns=found.names)

    def model(self) -> PreTrainedModel:
        """Load the trained model by the transformers class that it was saved as.

        Raises:
            ResultsError: the run has not come to its end.
        """
        import transformers

        from fedmoe_app.moe.quiet import quiet_transformers

        folder = self._model_folder()
        config = transformers.AutoConfig.from_pretrained(folder)
        name = next(iter(config.architectures or ()), "")
        with quiet_transformers():
            loaded: PreTrainedModel = getattr(transformers, name).from_pretrained(folder)
        return loaded.eval()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the trained model.

        Raises:
            ResultsError: the run has not come to its end.
        """
        from transformers import AutoTokenizer

        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._model_folder())
        return found

    def predict(self, texts: Sequence[str]) -> pd.DataFrame:
        """Return the probability of each class (a column) for each text (a row).

        A text that gives no token, such as an empty one, has NaN in its row.

        Raises:
            ConfigError: the run was no classification.
            ResultsError: the run has not come to its end.
        """
        import pandas as pd

        from fedmoe_app.server.saved import open_trained

        trained = open_trained(self.path)
        found = trained.probabilities(texts).numpy()
        return pd.DataFrame(found, index=list(texts), columns=list(trained.label_names))

    def report(self) -> Path:
        """Write ``report.html`` anew and return its path."""
        from fedmoe_app.report.run_page import write_run_page

        return write_run_page(self.path)

    def picture(self, name: str = "accuracy") -> Picture:
        """Return a picture of the run: accuracy, bytes, routing, and those of its scheme.

        Raises:
            ResultsError: there is none of this name; it lists those that there are.
        """
        return _picture(self.path, name)

    def _model_folder(self) -> Path:
        folder = self.path / "model"
        if not folder.is_dir():
            raise ResultsError(
                f"{folder}: no model there yet; `fedmoe export` makes one of a stopped run"
            )
        return folder


@dataclass(frozen=True)
class Comparison:
    """A comparison that is over.

    Attributes:
        path: its folder, with tables, pictures and ``report.html``.
    """

    path: Path

    @property
    def cells(self) -> pd.DataFrame:
        """One row a run: scheme, partition, seed and its figures."""
        return self._table("comparison.csv")

    @property
    def summary(self) -> pd.DataFrame:
        """One row a scheme and partition: means over seeds with intervals.

        ``difference_*`` is the accuracy minus that of the first scheme, seed by seed (paired).
        """
        return self._table("summary.csv")

    def picture(self, name: str = "accuracy") -> Picture:
        """Return a picture of the comparison: accuracy (over the rounds) or final.

        Raises:
            ResultsError: there is none of this name; it lists those that there are.
        """
        return _picture(self.path, name)

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.path / name)


def run(config: Mapping[str, Any] | None = None, *, clients: int = 8) -> RunResult:
    """Run a federated fine-tuning in this process.

    Args:
        config: keys of the run config that differ from their defaults, ``{"data.alpha": 0.1}``.
        clients: simulated clients, each with one part of the data.

    Raises:
        ConfigError, DataError: naming key, value and choices, before anything is trained.
    """
    from fedmoe_app.compare.in_process import run_in_process

    return RunResult(run_in_process(_flat(config), clients))


def compare_schemes(
    schemes: Sequence[str],
    *,
    seeds: Sequence[int] = (1, 2, 3),
    alphas: Sequence[float] = (),
    clients: int = 8,
    config: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    centralised: bool = True,
    grid: Mapping[str, Sequence[Any]] | None = None,
    tuning_seeds: Sequence[int] = (101,),
) -> Comparison:
    """Compare schemes over the same partitions, seeds and initial weights.

    Runs that ``output`` holds already are kept: call it again to go on.

    Args:
        schemes: names, or files of run config as in ``fedmoe compare --schemes``; ``alone``: every
            client trains by itself; the others are held against the first.
        seeds: one run of every scheme and partition for each.
        alphas: Dirichlet concentrations; none: the partition of the config.
        clients: simulated clients.
        config: keys of the run config for all runs.
        output: folder; None for one below ``$FEDMOE_HOME/results``.
        centralised: whether each seed gets a run of one client that holds all data.
        grid: values to try by key; every scheme and partition is run with what is best for it on
            validation rows.
        tuning_seeds: of the runs that the grid tries; none of ``seeds``.

    Raises:
        ResultsError: no point of the grid could be scored.
        ConfigError: for anything wrong that can be known before a run is started.
    """
    from fedmoe_app.compare.compare import Request, compare, folder_of, read_schemes
    from fedmoe_app.compare.grid import grid_of

    request = Request(
        Path("."),
        read_schemes(",".join(schemes)),
        tuple(seeds),
        tuple(alphas),
        clients,
        dict(config or {}),
        output=None if output is None else Path(output),
        centralised=centralised,
        grid=grid_of(grid or {}, tuning_seeds, seeds),
    )
    compare(request)
    return Comparison(folder_of(request))


def load_run(path: str | Path) -> RunResult:
    """Return a run by its result folder, or by its name under ``$FEDMOE_HOME/results``.

    Raises:
        ResultsError: there is none.
    """
    return RunResult(find_run(Path(path)))


def _picture(folder: Path, name: str) -> Picture:
    path = folder / f"{name}.png"
    if path.parent != folder or not path.is_file():
        there = ", ".join(sorted(each.stem for each in folder.glob("*.png"))) or "none"
        raise ResultsError(f"{folder}: no picture {name!r}; there are: {there}")
    return Picture(path)


def _flat(config: Mapping[str, Any] | None) -> dict[str, Any]:
    flat = with_absolute_paths(default_run_config() | dict(config or {}), Path.cwd())
    return with_output_dir(flat) if flat["output-dir"] else flat
