"""Models of the library torchmil behind this package's interface.

Each is the library's own module on the tiles of one bag, with the one thing changed that it fixes:
its last layers give one logit, here C. Its training losses are for two classes and are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmil.models import ABMIL, CLAM_SB, DSMIL, TransformerABMIL, TransMIL
from torchmil.nn import MultiheadSelfAttention

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.blocks import SCORE_ROWS, attend, in_blocks
from cmamil_sdk.models.names import TORCHMIL
from cmamil_sdk.models.output import MILOutput
from cmamil_sdk.models.single_scale import SingleScaleMIL, only_largest
from cmamil_sdk.models.transmil_graph import transmil_logits

_TRANSFORMER_HEADS = 8
_NYSTROM_HEADS = 4


class TorchmilABMIL(SingleScaleMIL):
    """ABMIL (Ilse et al. 2018), without gates: those are in model "abmil"."""

    kind = f"{TORCHMIL}ABMIL"
    title = "torchmil's ABMIL"

    def build(self) -> None:
        """The library's model with C logits."""
        self.net = ABMIL(in_shape=(self.dim,), att_dim=self.attention_dim)
        self.net.classifier = nn.Linear(self.dim, self.n_classes)

    @property
    def head(self) -> nn.Linear:
        """The library's classifier of a bag."""
        head: nn.Linear = self.net.classifier
        return head

    def mix(self, tiles: Tensor) -> Tensor:
        """``[n, dim]`` tiles -> ``[n, dim]``, as they are pooled."""
        return tiles

    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag, see :meth:`MILModel.forward`."""
        tiles = self.mix(self.first_layer(features, index))
        _, scores = self.net.pool(tiles[None], return_att=True)
        return self.attention_pooled(tiles, scores, self.head)


class TorchmilCLAM(TorchmilABMIL):
    """CLAM-SB (Lu et al. 2021): gated attention; its tile loss is in the training objective."""

    kind = f"{TORCHMIL}CLAM_SB"
    title = "torchmil's CLAM_SB"

    def build(self) -> None:
        """The library's model with C logits, without its two-class tile classifiers."""
        self.net = CLAM_SB(in_shape=(self.dim,), att_dim=self.attention_dim, gated=True)
        self.net.classifier = nn.Linear(self.dim, self.n_classes)
        self.net.inst_classifiers = nn.ModuleList()


class TorchmilTransformerABMIL(TorchmilABMIL):
    """One transformer layer over the tiles, then ABMIL (Castro-Macias et al. 2024).

    Memory grows with n where the attention of the layer is fused and in an exported graph, else with
    n * n.
    """

    kind = f"{TORCHMIL}TransformerABMIL"
    title = "torchmil's TransformerABMIL"

    def build(self) -> None:
        """The library's model with C logits."""
        _check_heads(self.title, self.dim, _TRANSFORMER_HEADS)
        self.net = TransformerABMIL(
            in_shape=(self.dim,),
            pool_att_dim=self.attention_dim,
            transf_att_dim=self.dim,
            transf_n_heads=_TRANSFORMER_HEADS,
        )
        for layer in self.net.transformer_encoder.layers:
            layer.att_module.__class__ = _SelfAttention
        self.net.last_layer = nn.Linear(self.dim, self.n_classes)

    @property
    def head(self) -> nn.Linear:
        """The library's classifier of a bag."""
        head: nn.Linear = self.net.last_layer
        return head

    def mix(self, tiles: Tensor) -> Tensor:
        """``[n, dim]`` tiles -> ``[n, dim]``, after the transformer."""
        mixed: Tensor = self.net.transformer_encoder(tiles[None])[0]
        return mixed


class TorchmilDSMIL(SingleScaleMIL):
    """DSMIL (Li et al. 2021): the mean of a max-pooling stream and an attention stream.

    Each class has its own critical tile and attention; the head reads all classes' bags, as in the
    paper.
    """

    kind = f"{TORCHMIL}DSMIL"
    title = "torchmil's DSMIL"

    def build(self) -> None:
        """The library's model with C logits."""
        self.net = DSMIL(in_shape=(self.dim,), att_dim=self.attention_dim)
        self.net.inst_classifier = nn.Linear(self.dim, self.n_classes)
        self.net.bag_classifier = _BagsHead(self.dim, self.n_classes)

    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag, see :meth:`MILModel.forward`."""
        tiles = self.first_layer(features, index)
        bag_logits, attention, tile_logits = self.net(
            tiles[None], return_att=True, return_inst_pred=True
        )
        critical, bags = self.net.inst_classifier, self.net.bag_classifier
        of_attention = (attention[0][:, None, :] * bags.per_bag(tiles)).sum(dim=-1)
        of_critical = only_largest(F.linear(tiles, critical.weight))
        return self.additive(
            tiles,
            0.5 * (of_attention + of_critical),
            0.5 * (bags.linear.bias + critical.bias),
            attention[0].transpose(0, 1),
            torch.cat([bag_logits, tile_logits.amax(dim=1)]),
        )


class TorchmilTransMIL(SingleScaleMIL):
    """TransMIL (Shao et al. 2021): a class token that all tiles inform through two layers.

    It is not additive, and its approximate attention has negative weights: it does not say which
    tiles its answer comes from.
    """

    kind = f"{TORCHMIL}TransMIL"
    title = "torchmil's TransMIL"
    has_attention = False
    is_additive = False

    def build(self) -> None:
        """The library's model with C logits."""
        _check_heads(self.title, self.dim, _NYSTROM_HEADS)
        self.net = TransMIL(in_shape=(self.dim,), att_dim=self.dim, n_heads=_NYSTROM_HEADS)
        self.net.classifier = nn.Linear(self.dim, self.n_classes)

    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag, see :meth:`MILModel.forward`."""
        tiles = self.first_layer(features, index)
        exporting = torch.compiler.is_exporting()
        logits = transmil_logits(self.net, tiles) if exporting else self.net(tiles[None])
        return MILOutput(logits=logits, embedding={self.scales[0]: tiles})


class _SelfAttention(MultiheadSelfAttention):  # type: ignore[misc]
    """The library's attention, in blocks of asking tiles where a graph is made of it."""

    def _scaled_dot_product_attention(
        self, query: Tensor, key: Tensor, value: Tensor, *options: Any, **named: Any
    ) -> Tensor:
        if not torch.compiler.is_exporting():
            attended: Tensor = super()._scaled_dot_product_attention(
                query, key, value, *options, **named
            )
            return attended

        # of their own memory: a scan takes no two views of one tensor
        keys, values, tiles = key[0].clone(), value[0].clone(), query[0].transpose(0, 1)

        def answer(block: Tensor) -> Tensor:
            return attend(block.transpose(0, 1), keys, values).transpose(0, 1).contiguous()

        found = in_blocks(answer, tiles, rows=SCORE_ROWS // self.n_heads)
        return found.transpose(0, 1)[None]


class _BagsHead(nn.Module):
    """A class's logit from the embeddings of all classes' bags, ``[1, C, dim]`` -> ``[1, C, 1]``."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_classes * dim, n_classes)
        self.n_classes = n_classes

    def forward(self, bags: Tensor) -> Tensor:
        logits: Tensor = self.linear(bags.flatten(1))
        return logits[..., None]

    def per_bag(self, tiles: Tensor) -> Tensor:
        """``[n, dim]`` -> ``[n, C, K]``: what a tile alone in bag K brings to class C."""
        weight = self.linear.weight.view(self.n_classes, self.n_classes, -1)
        return torch.einsum("nd,ckd->nck", tiles, weight)


def _check_heads(title: str, dim: int, heads: int) -> None:
    if dim % heads:
        raise ConfigInvalid(f"{title}: dim {dim} must be a multiple of its {heads} heads.")


TORCHMIL_MODELS: dict[str, type[SingleScaleMIL]] = {
    model.kind: model
    for model in (
        TorchmilABMIL,
        TorchmilCLAM,
        TorchmilDSMIL,
        TorchmilTransMIL,
        TorchmilTransformerABMIL,
    )
}

__all__ = ["TORCHMIL_MODELS"]
