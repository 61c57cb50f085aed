"""The model of an index, opened for its queries."""

from __future__ import annotations

from typing import cast

from diffclip.errors import UserError
from diffclip.search.store import Index
from diffclip.search.update import check_model
from diffclip.use.encoder import Encoder, Precision, open_encoder


def encoder_for(index: Index, model: str | None = None) -> Encoder:
    """The model that made an index, from where it was, or from `model`; in the precision of the index.

    Raises UserError where it is gone, or another one lies there.
    """
    source = model or index.about.model
    precision = cast(Precision, index.about.precision)
    try:
        encoder = open_encoder(source, precision)
    except UserError as error:
        moved = "" if model else "; if it has moved, give --model PATH"
        raise UserError(f"the model of {index.uri} cannot be opened: {error}{moved}") from None
    check_model(index, encoder)
    return encoder
