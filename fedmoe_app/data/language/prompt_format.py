"""The prompt of an instruction without a chat template: ``data.prompt-format``."""

from __future__ import annotations

from fedmoe_app.config.schema import Paragraph, parse_prompt_format

# The default: the layout of Alpaca (Taori et al., 2023), with a passage called context.
ALPACA = (
    "{system}\n\n### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n"
    "### Response:\n{response}"
)


class PromptFormat:
    """A text with the placeholders ``{system}``, ``{instruction}``, ``{context}``, ``{response}``.

    A paragraph, which is what stands between empty lines, is left out where it has placeholders
    and all of them are empty. What is put in is never read as a format itself.
    """

    def __init__(self, text: str) -> None:
        """Parse a format.

        Raises:
            ValueError: see :func:`fedmoe_app.config.schema.parse_prompt_format`.
        """
        self._paragraphs = parse_prompt_format(text)

    def has(self, placeholder: str) -> bool:
        """Tell whether the format names a placeholder."""
        return any(name == placeholder for part in self._paragraphs for _, name in part)

    def prompt(self, instruction: str, context: str = "", system: str = "") -> str:
        """Return the text up to the response."""
        values = {"instruction": instruction, "context": context, "system": system}
        values = {name: value.strip() for name, value in values.items()} | {"response": ""}
        kept = [part for part in self._paragraphs if _is_shown(part, values)]
        return "\n\n".join(_fill(part, values) for part in kept)


def _is_shown(paragraph: Paragraph, values: dict[str, str]) -> bool:
    names = [name for _, name in paragraph if name]
    return not names or "response" in names or any(values[name] for name in names)


def _fill(paragraph: Paragraph, values: dict[str, str]) -> str:
    return "".join(literal + values.get(name, "") for literal, name in paragraph)
