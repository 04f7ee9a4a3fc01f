"""The overview of the schemes, made of the pages that describe them.

Every page of ``docs/schemes`` begins with a table of its schemes under :data:`HEAD`. The overview,
``docs/schemes/README.md``, has all of these rows in the order of the names that are built in, with
links to the pages.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedmoe_app.config.names import SCHEME_NAMES

OVERVIEW = Path("docs/schemes/README.md")
HEAD = """| scheme | what travels beside the changes | what is kept on the node | what differs from FedAvg |
| --- | --- | --- | --- |
"""  # noqa: E501
_ROW = re.compile(r"\| `(\w+)` \| .*")


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """Return the rows of the pages' own tables: page (``fc-moe``) -> scheme -> its row."""
    found = {}
    for path in sorted(folder.glob("*.md")):
        rest = path.read_text(encoding="utf-8").partition(HEAD)[2]
        table = rest.partition("\n\n")[0].splitlines()
        own = {match[1]: line for line in table if (match := _ROW.fullmatch(line))}
        if own:
            found[path.stem] = own
    return found


def overview(app: Path) -> str:
    """Return the text of the overview page with the table made anew; "" where there is none."""
    path = app / OVERVIEW
    if not path.is_file():
        return ""
    before, head, rest = path.read_text(encoding="utf-8").partition(HEAD)
    linked = {
        name: row.replace(f"`{name}`", f"[`{name}`]({page}.md)", 1)
        for page, own in rows(path.parent).items()
        for name, row in own.items()
    }
    table = [linked[name] for name in SCHEME_NAMES if name in linked]
    return before + head + "\n".join(table) + "\n\n" + rest.partition("\n\n")[2]
