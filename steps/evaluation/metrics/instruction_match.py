"""Instruction match: 1 where the answer keeps every rule of its row, whatever it says."""

import datasets
import evaluate

from .rules import keeps


class InstructionMatch(evaluate.Metric):
    """Instruction match: 1 where the answer keeps every rule of its row, whatever it says."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="IFEval (Zhou et al., 2023), the strict score of a prompt",
            inputs_description="predictions: strings; references: not looked at; rules: a list of names for each.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                    "rules": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions, references, rules):
        if not all(rules):
            raise ValueError("every row of the prompt set must have rules")
        scores = [
            float(all(keeps(answer, rule) for rule in asked)) for answer, asked in zip(predictions, rules, strict=True)
        ]
        return {"instruction_match": sum(scores) / len(scores), "scores": scores}
