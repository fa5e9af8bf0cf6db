"""Prompt sets: the questions that variants are scored on, with their accepted answers."""

from steps.evaluation.prompt_set.loading import PromptSet, load, name_of, shortened

__all__ = ["PromptSet", "load", "name_of", "shortened"]
