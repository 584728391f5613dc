"""``docs/training.md`` names every option."""

from __future__ import annotations

from pathlib import Path

from cmamil_sdk.training.config import TrainConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_every_option_is_in_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("## Options") : text.index("## Which epoch")]
    assert [name for name in TrainConfig.model_fields if f"`{name}`" not in table] == []
