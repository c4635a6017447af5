"""What a database says, as a `StoreError` that a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from autospec.errors import StoreError

__all__ = ["plain_errors"]


@contextmanager
def plain_errors(engine: sa.Engine) -> Iterator[None]:
    """Turn SQLAlchemy's errors into `StoreError`.

    Raises:
        StoreError: The database could not do what was asked.
    """
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise StoreError(
            f"The database {where} cannot be used: {error.orig}.",
            "Check that the disk has room and the file is not damaged; `autospec config show` tells where it is.",
        ) from error
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"The database {where} cannot be used: {error}.", "Check `storage`.") from error
