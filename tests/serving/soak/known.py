"""The right answers, found out before there is any traffic."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cmamil_sdk._client_calls import Question
from cmamil_sdk._proto.inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from cmamil_sdk.bundle import Bundle
from cmamil_sdk.client import AsyncClient, SlideInspection
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.predict import LocalPredictor, Prediction

from ..open_inference.asking import INFER, request, tiles

ENGINE = "onnxruntime"  # compiles nothing, and is bit-equal whoever shares a batch
OTHER_LABELS = "other "
"""In front of each label of version 2, by which the versions are told apart."""


@dataclass
class Known:
    """What each slide must be answered with, to the last bit.

    Attributes:
        predictions: probabilities by slide, by the local predictor and version 1.
        bags, inspections: by slide, from the server when nothing else was asked of it.
        tensors: the encoder's answer to :func:`tensor_question`, likewise.
    """

    predictions: dict[str, dict[str, float]]
    bags: dict[str, Bag] = field(default_factory=dict)
    inspections: dict[str, SlideInspection] = field(default_factory=dict)
    tensors: bytes = b""

    async def ask(self, client: AsyncClient, slides: list[str]) -> None:
        """Learn from a server that does nothing else."""
        for slide in slides:
            self.bags[slide], _ = await client.extract_features(slide, bypass_cache=True)
            self.inspections[slide] = await client.inspect(slide)
        self.tensors = await client._ask(tensor_question())

    def check(self, slide: str, found: Prediction | None) -> None:
        """Fail unless a prediction is that of its slide, by the version that it says."""
        assert found is not None
        front = OTHER_LABELS if found.bundle == "tiny/2" else ""
        expected = {f"{front}{label}": p for label, p in self.predictions[slide].items()}
        assert found.probabilities == expected, (slide, found.bundle, found.feature_source)
        assert not found.tiles_failed and not found.warnings

    def check_bag(self, slide: str, bag: Bag) -> None:
        """Fail unless the features are the slide's."""
        expected = self.bags[slide]
        assert bag.counts() == expected.counts()
        for scale in bag.features:
            assert (bag.features[scale] == expected.features[scale]).all()
            assert (bag.coords[scale] == expected.coords[scale]).all()


def predicted(bundle: Path, root: Path, slides: list[str]) -> Known:
    """What the local predictor says of slides."""
    local = LocalPredictor(Bundle.load(bundle, engine=ENGINE))
    try:
        return Known({slide: local.predict(root / slide).probabilities for slide in slides})
    finally:
        local.close()


def tensor_question() -> Question[bytes]:
    """Three tiles for the encoder, by the Open Inference Protocol."""
    message: ModelInferRequest = request("tiny-encoder", tiles(3))
    return Question(INFER, message, ModelInferResponse, _features, timeout_s=60.0)


def _features(reply: ModelInferResponse) -> bytes:
    (content,) = reply.raw_output_contents
    return bytes(content)
