"""From a prompt set to a scorecard: questions, answers, scores."""
