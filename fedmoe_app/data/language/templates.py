"""Which chat template formats a run's conversations, and on which day it is rendered.

Some templates print today's date (Llama 3.2, gpt-oss). A run must not depend on its day, so they
are given the date that Llama's own templates fall back to.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fedmoe_app.config.errors import DataError
from fedmoe_app.config.schema import DataConfig

# 26 July 2024, a Friday, at midnight.
_DATE = {
    "%Y": "2024",
    "%y": "24",
    "%m": "07",
    "%B": "July",
    "%b": "Jul",
    "%d": "26",
    "%e": "26",
    "%-d": "26",
    "%A": "Friday",
    "%a": "Fri",
    "%j": "208",
    "%H": "00",
    "%M": "00",
    "%S": "00",
    "%I": "12",
    "%p": "AM",
    "%%": "%",
}
_CLOCK = "strftime_now"
# The line break behind it is taken away by the block before it (trim_blocks).
_FIXED_DATE = (
    f"{{%- macro {_CLOCK}(format) -%}}{{{{ format"
    + "".join(f"|replace({code!r}, {shown!r})" for code, shown in _DATE.items())
    + " }}{%- endmacro %}\n"
)


def own_template(config: DataConfig) -> str:
    """Return the template that ``data.chat-template`` gives, as text.

    Raises:
        DataError: the file cannot be read.
    """
    if "{" in config.chat_template:
        return config.chat_template
    path = Path(config.chat_template).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(
            f'data.chat-template = "{config.chat_template}": cannot be read ({reason}; looked for '
            f"{path.absolute()}); give an absolute path of a file that every node has, or the "
            "template itself"
        ) from None


def adopt_template(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
    """Give the tokenizer the template of the config, if it has one: a saved model keeps it."""
    if config.own_template:
        tokenizer.chat_template = own_template(config)


def find_template(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> str | None:
    """Return the template that formats conversations; None: ``data.prompt-format`` does.

    Raises:
        DataError: one is wanted, and the tokenizer has none.
    """
    if config.own_template:
        return own_template(config)
    if config.chat_template == "never":
        return None
    if tokenizer.chat_template is not None:
        try:
            return str(tokenizer.get_chat_template())
        except ValueError as error:  # several by name, none of them "default"
            raise DataError(f"data.chat-template: give one as a .jinja file ({error})") from None
    if config.chat_template == "always":
        raise DataError(
            'data.chat-template = "always": the tokenizer of this model has no chat template; '
            'choose "auto", or give a .jinja file'
        )
    return None


def with_fixed_date(template: str) -> str:
    """Return a template whose clock stands still."""
    return _FIXED_DATE + template if _CLOCK in template else template
