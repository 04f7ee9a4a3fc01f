"""A saved model put to use: classes of new texts, and answers in a conversation.

What a text becomes is what it was in training: the same task encodes it, with the run's config.

Shapes: N texts, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from fedmoe_app.config.errors import ConfigError
from fedmoe_app.config.schema import RunConfig
from fedmoe_app.data.encoded import Encoded
from fedmoe_app.data.language.encode import row_encoder
from fedmoe_app.moe.quiet import quiet_transformers
from fedmoe_app.tasks.base import Task, TaskSetting
from fedmoe_app.tasks.generation import generate
from fedmoe_app.tasks.registry import make_task
from fedmoe_app.tasks.setup import device

Message = Mapping[str, str]  # role and content

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A model with its tokenizer, and what its run says of texts.

    Attributes:
        model: in eval mode.
        tokenizer: saved beside it.
        config: of the run.
        task: that it was trained for.
        label_names: of the C classes; empty where the task has none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig
    task: Task
    label_names: tuple[str, ...] = ()

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """Return the probability of each class for each text, ``[N, C]`` float32 on the CPU.

        A text that gives no token, such as an empty one, has no class: its row is NaN, and a
        warning counts them.

        Raises:
            ConfigError: the run was no classification.
        """
        self._check_task("classification", "predict")
        asked = [text.strip() for text in texts]
        with _silent_rows():
            empty = set(self._without_token(asked, 0))
            rows = self._encoded([text for i, text in enumerate(asked) if i not in empty])
        if empty:
            _log.warning(
                "%d of %d texts gave no token with this model's tokenizer, so they have no class "
                "(the first is text %d)",
                *(len(empty), len(asked), min(empty) + 1),
            )
        size = self.config.train.per_device_eval_batch_size
        found = torch.full((len(asked), len(self.label_names)), torch.nan)
        places = [i for i in range(len(asked)) if i not in empty]
        for start in range(0, len(rows), size):
            batch = self.task.collate(rows[start : start + size], self.model.device)
            with torch.no_grad():
                logits, _ = self.task.predict(self.model, batch)
            found[places[start : start + size]] = logits.float().softmax(-1).cpu()
        return found

    def reply(
        self,
        messages: Sequence[Message],
        max_new_tokens: int | None = None,
        streamer: BaseStreamer | None = None,
    ) -> str:
        """Return the answer to a conversation whose last message is the user's, greedily.

        It is laid out as in training, by the model's chat template or the run's prompt format; of a
        long one the first exchanges are left out.

        Args:
            messages: with role (system, user, assistant) and content.
            max_new_tokens: at most so many are generated; None: as the run's config says.
            streamer: of transformers; is given the tokens as they are made.

        Raises:
            ConfigError: the run was no language modelling.
            DataError: the conversation cannot be laid out.
        """
        self._check_task("causal-lm", "chat")
        data, seq2seq = self.config.data, self.model.config.is_encoder_decoder
        encoder = row_encoder(["messages"], self.tokenizer, data.max_length, seq2seq, data)
        # The encoder gives what comes before the last answer, whatever that is.
        whole = [dict(message) for message in messages] + [{"role": "assistant", "content": "…"}]
        batch: dict[str, Any] = {
            "messages": [whole],
            "num_given": [0],
            "where": ["the conversation"],
        }
        ((prompt, _),) = encoder.questions(batch)
        stops = getattr(self.task, "stop_ids", ())
        most = max_new_tokens or data.max_new_tokens
        (answer,) = generate(self.model, self.tokenizer, [prompt], most, stops, streamer)
        return answer

    def _encoded(self, texts: Sequence[str]) -> Encoded:
        labels = [0] * len(texts)  # a row needs one; it is not looked at
        return self.task.encode(Dataset.from_dict({"text": list(texts), "label": labels}))

    def _without_token(self, texts: Sequence[str], first: int) -> list[int]:
        """Return the places, from ``first`` on, of texts that give no token: by halves."""
        if not texts or len(self._encoded(texts)) == len(texts):
            return []
        if len(texts) == 1:
            return [first]
        middle = len(texts) // 2
        left = self._without_token(texts[:middle], first)
        return left + self._without_token(texts[middle:], first + middle)

    def _check_task(self, wanted: str, command: str) -> None:
        if self.config.data.task != wanted:
            other = {"classification": "predict", "causal-lm": "chat"}.get(self.config.data.task)
            way = f"; `fedmoe {other}` is for it" if other else ""
            raise ConfigError(
                f'this run has data.task = "{self.config.data.task}", and `fedmoe {command}` is '
                f'for "{wanted}"{way}'
            )


@contextmanager
def _silent_rows() -> Iterator[None]:
    """Keep the tasks' own warnings of rows that they leave out: of training, not of texts."""
    log = logging.getLogger("fedmoe_app.data.encoding")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def load_trained(
    folder: Path, config: RunConfig, label_names: Sequence[str], on: str = "auto"
) -> Trained:
    """Load what a run saved.

    Args:
        folder: as ``save_pretrained`` wrote model and tokenizer.
        config: of the run.
        label_names: class names in index order; empty without classes.
        on: see :func:`fedmoe_app.tasks.setup.device`.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    architecture = next(iter(transformers.AutoConfig.from_pretrained(folder).architectures), "")
    with quiet_transformers():
        loaded = getattr(transformers, architecture).from_pretrained(folder)
    model = loaded.eval().to(device(on))
    head = "sequence" if architecture.endswith("ForSequenceClassification") else "label-words"
    seq2seq = model.config.is_encoder_decoder
    setting = TaskSetting(config.data, tokenizer, seq2seq, head, label_names, config.template)
    task = make_task(setting)
    return Trained(model, tokenizer, config, task, tuple(label_names))
