"""The accuracy tables by name."""

from __future__ import annotations

from pathlib import Path

from cmamil_sdk.errors import ConfigInvalid

from . import ablation, conjunction, hierarchy, needle
from .musk import musk_table
from .table import Table

_GENERATED: dict[str, Table] = {
    module.TABLE.name: module.TABLE for module in (conjunction, hierarchy, needle, ablation)
}
_READS_DATA = "musk"
TABLES = (*_GENERATED, _READS_DATA)


def make_table(name: str, data: Path | None = None) -> Table:
    """The table called ``name``; ``data`` is the folder of the MUSK files, which only they need.

    Raises:
        ConfigInvalid: there is no such table, or it needs ``data``, or has no use for it.
    """
    if name not in TABLES:
        raise ConfigInvalid(f"There is no table {name!r}; choose one of {', '.join(TABLES)}.")
    if name != _READS_DATA:
        if data is not None:
            raise ConfigInvalid(f"Table {name} generates its bags; leave out --data.")
        return _GENERATED[name]
    if data is None:
        raise ConfigInvalid(
            "Table musk needs the folder of musk1.csv.gz and musk2.csv.gz; name it with --data."
        )
    return musk_table(data)


__all__ = ["TABLES", "make_table"]
