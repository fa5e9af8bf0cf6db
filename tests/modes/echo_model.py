"""The model that the echo mode logs from code."""

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Echo(PythonModel):
    def load_context(self, context):
        self._times = context.model_config["times"]

    def predict(self, context, model_input: pd.DataFrame, params=None):
        replies = [self._reply(messages[-1]["content"]) for messages in model_input["messages"]]
        return replies if len(replies) > 1 else replies[0]

    def _reply(self, question):
        text = " ".join([question] * self._times)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "echo",
            "choices": [choice],
            "usage": usage,
        }


set_model(Echo())
