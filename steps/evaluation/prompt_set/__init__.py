"""Prompt sets: questions with accepted answers, on which variants are scored."""

from steps.evaluation.prompt_set.loading import PromptSet, load, name_of, shortened

__all__ = ["PromptSet", "load", "name_of", "shortened"]
