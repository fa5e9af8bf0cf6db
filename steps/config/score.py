"""The keys of the score step."""

from dataclasses import dataclass

from steps.config.keys import key


@dataclass
class ScoreConfig:
    """Which table to answer with the champion, and where to write it.

    `question` names the column of the questions: a text, or a list of messages. `batch_size` rows are asked together,
    and `part_rows` are written together: after a kill, at most so many are asked again. A job with more than
    `max_errors` rows that have an error ends; null allows any number.
    """

    input: str | None = key(None, free_text=True, is_path=True, needed=True)
    output: str | None = key(None, free_text=True, needed=True)
    question: str | None = key(None, free_text=True)
    answer_column: str = key("answer", free_text=True)
    error_column: str = key("error", free_text=True)
    registered_model: str = "phi3"
    batch_size: int = key(256, at_least=1)
    part_rows: int = key(1024, at_least=1)
    max_errors: int | None = key(None, at_least=0)
