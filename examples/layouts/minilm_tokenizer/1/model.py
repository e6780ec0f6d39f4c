"""Tokenizes sentences for minilm. Runs unchanged on Triton's Python backend."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils
from wordpiece import WordPiece


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.tokenizer = WordPiece.from_file(
            Path(__file__).with_name("vocab.txt"), max_tokens=int(parameters["max_tokens"]["string_value"])
        )
        self.multiple = int(parameters["pad_to_multiple_of"]["string_value"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        try:
            sentences = [text.decode("utf-8") for text in texts]
        except UnicodeDecodeError as error:
            # Only this request is at fault: the others of the batch get their answers.
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(
                    f"input text: not UTF-8: {error}", pb_utils.TritonError.INVALID_ARG
                )
            )
        input_ids, attention_mask = self.tokenizer.batch(sentences, multiple=self.multiple)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("input_ids", input_ids), pb_utils.Tensor("attention_mask", attention_mask)]
        )
